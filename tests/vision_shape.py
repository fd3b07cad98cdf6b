"""A shape model with images: Qwen2.5-VL's architecture, template and image processor, a real vocabulary, two layers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.shapes import HIDDEN, INNER, LAYERS

VOCABULARY = 152064
"""Rows of Qwen2.5-VL's embedding; its tokens are those of Qwen3's vocabulary."""
LAST_TOKEN = 151664
"""Of Qwen2.5's vocabulary; Qwen3 adds tags for thinking and tools."""
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes what Qwen2.5-VL's own template writes for texts and images."""


def make_vision_shape(folder: Path, tokenizers: Path) -> Path:
    """Writes the checkpoint to `folder`. `tokenizers`: folder of the real tokenizers."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": LAYERS,
        "hidden_size": HIDDEN,
        "num_heads": 2,
        "intermediate_size": INNER,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [LAYERS - 1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=False,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    with gzip.open(tokenizers / "qwen3" / "tokenizer.json.gz", "rt", encoding="utf-8") as file:
        tokenizer = json.load(file)
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] <= LAST_TOKEN]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((tokenizers / "qwen3" / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    added = settings.get("added_tokens_decoder", {})
    settings["added_tokens_decoder"] = {token: value for token, value in added.items() if int(token) <= LAST_TOKEN}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    generation = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
"""As in Qwen2.5-VL's checkpoints."""
