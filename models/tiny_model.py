"""The bundled tiny model: tokenizer, architecture, untrained weights and training rows.

The tokenizer is a byte-level BPE trained with the pre-tokenizer that AutoTokenizer applies to every `qwen2` checkpoint
(each digit a token); AutoTokenizer would silently replace any other one on load.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from conf.tiny_model import Lesson, Teacher
from reasoning.stories import OverThinker, Split, draw_stories

END = "<|endoftext|>"
PAD = "<|pad|>"
RESERVED = (
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|long|>",
    "<|short|>",
    "<|turn|>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<rethink>",
    "</rethink>",
)
"""Tags that are one token each; changing them would invalidate all recorded figures."""
CONTEXT = 2048
VOCABULARY = 640
R = TypeVar("R", bound=Mapping[str, Any])
SORTED_BATCHES = 40
"""Batches per window within which rows are sorted by length."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """The tokenizer with its reserved tags; merges are learnt from `texts`."""
    tokenizer = Qwen2Tokenizer(pad_token=END).train_new_from_iterator(texts, vocab_size=VOCABULARY - len(RESERVED) - 1)
    tags = [AddedToken(tag, special=False, normalized=False) for tag in RESERVED]
    tokenizer.add_tokens([AddedToken(PAD, special=True, normalized=False), *tags])
    tokenizer.pad_token = PAD
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def untrained_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """About 0.8 M random parameters in float32."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    end, pad = (vocabulary[token] for token in (END, PAD))
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


def teacher_texts(lessons: Sequence[Lesson], teacher: Teacher, seed: int) -> list[list[tuple[str, str]]]:
    """For each lesson, pairs (problem, trace with reply) texts by the over-thinking teacher."""
    texts = []
    for number, lesson in enumerate(lessons):
        thinker = OverThinker(teacher, random.Random(f"teacher:{seed}:{number}"))
        stories = draw_stories(Split.PRETRAIN, seed * len(lessons) + number, lesson.stories, lesson.levels)
        thoughts = [thinker.think(story) for story in stories]
        texts.append([(s.text, f"{t.text}</think>{t.reply}{END}") for s, t in zip(stories, thoughts, strict=True)])
    return texts


def training_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]], batch: int, seed: int
) -> list[dict[str, list[int]]]:
    """One lesson as rows of token ids, ordered in full batches of similar length to reduce padding."""
    prompts = [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )
        for text, _ in texts
    ]
    prompt_ids, completion_ids = tokenizer(prompts)["input_ids"], tokenizer([trace for _, trace in texts])["input_ids"]
    rows = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return in_batches(rows, batch, seed)


def in_batches(rows: Sequence[R], batch: int, seed: int) -> list[R]:
    """`rows` in full batches of similar length, in random order. Rows that fill no batch are left out."""
    rng, rows = random.Random(f"rows:{seed}"), list(rows)
    rng.shuffle(rows)
    ordered: list[R] = []
    for start in range(0, len(rows), batch * SORTED_BATCHES):
        window = sorted(rows[start : start + batch * SORTED_BATCHES], key=lambda row: len(row["completion_ids"]))
        batches = [window[at : at + batch] for at in range(0, len(window) - batch + 1, batch)]
        rng.shuffle(batches)
        ordered += [row for rows_of_batch in batches for row in rows_of_batch]
    return ordered
