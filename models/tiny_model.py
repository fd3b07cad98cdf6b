"""The bundled tiny model: its tokenizer contract, its shape, and an untrained copy of it.

Knows: the Qwen2 architecture, the reserved tags, how a story becomes training ids.
Must not know: how it is trained, sampled or measured; nothing here runs a forward pass.

The tokenizer is a byte-level BPE trained under the very pre-tokenizer that AutoTokenizer puts on
every `qwen2` checkpoint (each digit on its own), because any other one would be silently replaced
on load.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from reasoning.stories import Split, Teacher, draw_stories

TINY_MODEL = Path(__file__).parent / "tiny"
"""The committed weights."""
END = "<|endoftext|>"
PAD = "<|pad|>"
RESERVED = (
    "<|system|>", "<|user|>", "<|assistant|>", "<|long|>", "<|short|>", "<|turn|>",
    "<think>", "</think>", "<answer>", "</answer>", "<rethink>", "</rethink>",
)  # fmt: skip
"""Tags that are one token each from the start: a later change would void every figure."""
CONTEXT = 2048
VOCABULARY = 640
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """The tokenizer with its reserved tags, merges learnt from `texts`."""
    learnt = Qwen2Tokenizer(pad_token=END).train_new_from_iterator(texts, vocab_size=VOCABULARY - len(RESERVED) - 1)
    tags = [AddedToken(tag, special=False, normalized=False) for tag in RESERVED]
    learnt.add_tokens([AddedToken(PAD, special=True, normalized=False), *tags])
    learnt.pad_token = PAD
    learnt.chat_template = CHAT_TEMPLATE
    learnt.model_max_length = CONTEXT
    return learnt


def untrained_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """About 0.8 M random parameters in float32."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=320, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def teacher_texts(count: int, seed: int, levels: tuple[int, ...], teacher: Teacher) -> list[tuple[str, str]]:
    """`count` pairs (problem, trace with its reply) by the over-thinking teacher."""
    rng = random.Random(f"teacher:{seed}")
    stories = draw_stories(Split.PRETRAIN, seed, count, levels)
    thoughts = [teacher.think(story, rng) for story in stories]
    return [
        (story.text, f"{thought.text}</think>{thought.reply}") for story, thought in zip(stories, thoughts, strict=True)
    ]
