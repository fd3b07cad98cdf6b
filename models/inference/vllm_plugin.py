"""A vLLM plugin (`vllm.general_plugins`): lets it serve the Qwen2-VL family where torchvision is not installed.

There, transformers has neither the image processor that vLLM imports nor the video processor that the models' own
processors ask for. It must not change anything where torchvision is installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from models.checkpoints.images import image_processor_class


def register() -> None:
    """Called by each process of vLLM before it imports a model."""
    if find_spec("torchvision"):
        return
    from transformers.models import qwen2_5_vl, qwen2_vl
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

    sys.modules[f"{qwen2_vl.__name__}.image_processing_qwen2_vl"] = image_processing_pil_qwen2_vl
    qwen2_vl.Qwen2VLImageProcessor = image_processor_class()
    qwen2_vl.Qwen2VLProcessor = without_videos(qwen2_vl.Qwen2VLProcessor)
    qwen2_5_vl.Qwen2_5_VLProcessor = without_videos(qwen2_5_vl.Qwen2_5_VLProcessor)


def without_videos(processor: Any) -> type:
    """A class of processors that hold a tokenizer and an image processor alone."""

    class ImageTextProcessor(processor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None):
            self.image_processor, self.tokenizer = image_processor, tokenizer
            self.chat_template = chat_template or getattr(tokenizer, "chat_template", None)
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        @classmethod
        def from_pretrained(cls, folder: str, *_: Any, tokenizer: Any = None, **__: Any) -> Any:
            from transformers import AutoTokenizer

            tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder)
            return cls(image_processor_class().from_pretrained(folder), tokenizer)

    return ImageTextProcessor
