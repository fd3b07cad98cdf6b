"""Images for rows of token ids: joins a batch with the pixel values that its placeholders stand for.

Knows batches as TRL's collators make them, and where a row's images lie. Must not know how a model is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from models.checkpoints.images import ImageProcessor

Batch = dict[str, Any]


def read_images(problems: Path, names: Set[str]) -> dict[str, list[bytes]]:
    """Images of the problems with these ids, from rows of Problem."""
    table = pq.read_table(problems, columns=["id", "images"], filters=[("id", "in", names)])
    return dict(zip(table["id"].to_pylist(), table["images"].to_pylist(), strict=True))


def image_inputs(processor: ImageProcessor, input_ids: torch.Tensor, images: Sequence[bytes]) -> Batch:
    """What the forward pass takes beside `input_ids`, of shape (rows, tokens). `images`: of all rows, in order. The
    model itself refuses placeholders without images."""
    is_image = (input_ids == processor.token_id).int()
    return {**processor.inputs(images), "mm_token_type_ids": is_image} if images else {}


class WithImages:
    """A collator for rows whose prompts hold placeholders of images."""

    def __init__(
        self,
        collate: Callable[[list[Batch]], Batch],
        processor: ImageProcessor,
        images: Mapping[str, Sequence[bytes]],
    ):
        """`collate`: makes a batch of token ids; of pairs, the chosen ones first, then the rejected ones. `images`: by
        the rows' `problem_id`."""
        self._collate, self._processor, self._images = collate, processor, images

    def __call__(self, rows: list[Batch]) -> Batch:
        batch = self._collate(rows)
        images = [image for row in rows for image in self._images[row["problem_id"]]]
        sides = len(batch["input_ids"]) // len(rows)
        return {**batch, **image_inputs(self._processor, batch["input_ids"], images * sides)}
