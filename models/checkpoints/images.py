"""How a model takes images: the tokens that stand for one in its prompt, and the pixel values that its trainer needs.

Knows the Qwen2-VL family, whose placeholder is one token, repeated for each merged patch. Must not know prompts,
servers or trainers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.files import CheckpointError, first_line, read_json
from reasoning.token_ids import TokenIds

IMAGE_MODELS = ("qwen2_vl", "qwen2_5_vl")
"""Values of `model_type` whose placeholders, pixel values and positions are known here."""
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
OTHER_PLACEHOLDERS = ("video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Fields of config.json with tokens that only a prompt may hold, as its image token."""


@dataclass(frozen=True)
class PromptImages:
    """The images of one prompt, in their order."""

    files: tuple[bytes, ...]
    token_id: int
    """The model's placeholder. In a prompt's token ids it stands as often as the image takes tokens."""

    @cached_property
    def digests(self) -> tuple[str, ...]:
        return tuple(hashlib.sha256(file).hexdigest() for file in self.files)

    def collapsed(self, prompt_ids: TokenIds) -> TokenIds:
        """`prompt_ids` with one placeholder for each image, as vLLM takes them: it repeats them itself. Two images
        never stand side by side, since each is between tokens of its own."""
        is_placeholder = prompt_ids.array == self.token_id
        repeats = np.zeros(len(prompt_ids), dtype=bool)
        repeats[1:] = is_placeholder[1:] & is_placeholder[:-1]
        return TokenIds.of(prompt_ids.array[~repeats])


class ImageProcessor:
    """The image processor in a checkpoint's folder."""

    def __init__(self, folder: Path):
        """Raises CheckpointError for a model that takes no images, or whose way to take them is not known here."""
        self._folder, self._config = folder, read_json(folder / "config.json")
        self.token_id: int = self._config.get("image_token_id")  # type: ignore[assignment]
        kind = self._config.get("model_type")
        if kind not in IMAGE_MODELS or not isinstance(self.token_id, int):
            raise CheckpointError(
                f"{folder}/config.json: model_type {kind!r} does not take images here, but a problem has one; use a "
                f"model of type {' or '.join(IMAGE_MODELS)}, or problems without images"
            )

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Tokens that a completion may not contain, because a server would look for an image at each."""
        found = (self._config.get(name) for name in ("image_token_id", *OTHER_PLACEHOLDERS))
        return tuple(token for token in found if isinstance(token, int))

    def tokens(self, image: bytes) -> int:
        """Number of tokens of an image."""
        from PIL import Image

        with Image.open(io.BytesIO(image)) as opened:
            return self.tokens_of_size(*opened.size)

    def tokens_of_size(self, width: int, height: int) -> int:
        """Number of tokens of an image with these sides, in pixels."""
        return self._processor.get_number_of_image_patches(height, width) // self._processor.merge_size**2

    def expanded(self, token_ids: TokenIds, images: Sequence[bytes]) -> TokenIds:
        """`token_ids` with each placeholder as often as its image takes tokens. Raises CheckpointError where the
        numbers of placeholders and images differ."""
        places = np.flatnonzero(token_ids.array == self.token_id)
        if len(places) != len(images):
            raise CheckpointError(
                f"{self._folder}: the chat template writes {len(places)} image placeholders for {len(images)} images; "
                f"use the model's original template, and no placeholders in a problem's text"
            )
        counts = np.ones(len(token_ids), dtype=int)
        counts[places] = [self.tokens(image) for image in images]
        return TokenIds.of(np.repeat(token_ids.array, counts))

    def inputs(self, images: Sequence[bytes]) -> dict[str, Any]:
        """What a model's forward pass takes for `images`, as tensors: `pixel_values` of shape (patches of all, values
        of a patch) and `image_grid_thw` of shape (images, 3)."""
        from PIL import Image

        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        return dict(self._processor(images=opened, return_tensors="pt"))

    @cached_property
    def _processor(self) -> Any:
        try:
            return image_processor_class().from_pretrained(self._folder, local_files_only=True)
        except Exception as error:  # the library also raises bare Exceptions
            reason = first_line(error)
            raise CheckpointError(f"{self._folder}: its image processor cannot be loaded: {reason}") from None


def image_processor_class() -> Any:
    """The Qwen2-VL image processor of transformers: with torchvision where it is installed, else with Pillow."""
    if find_spec("torchvision"):
        from transformers.models.qwen2_vl import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


def takes_images(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of a model with images that is known here."""
    return config.get("model_type") in IMAGE_MODELS
