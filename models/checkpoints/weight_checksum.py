"""What tells two sets of weights apart, however they are laid out.

Knows: tensors, weights in files. Must not know: who holds them, who compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

CLOSE = 1e-13
"""Relative difference by the order of the sums. Among a thousand million weights one that moved by its least is more,
unless it is far smaller than the mean: a single such weight would pass."""
PIECE = 2**24
"""Elements that are widened at one time: beside a served model there is not much memory."""


def weight_checksum(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Sum of the absolute weights, and of their squares. They are the same where matrices are joined, or padded with
    zeros, as servers do; float64."""
    sums: list[tuple[float, float]] = []
    for tensor in tensors:
        for piece in tensor.detach().reshape(-1).split(PIECE):
            wide = piece.double()
            sums.append((float(wide.abs().sum()), float(wide.square().sum())))
    return [math.fsum(one) for one in zip(*sums, strict=True)]


def checksum_of_folder(folder: Path, dtype: str) -> list[float]:
    """Of a checkpoint's weights as they are served in `dtype`; a tied output matrix is the embedding once more."""
    tied = AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings
    weights = (weight for name, weight in _weights(folder) if not (tied and name == "lm_head.weight"))
    return weight_checksum(weight.to(getattr(torch, dtype)) for weight in weights)


def same_checksum(one: list[float], other: list[float]) -> bool:
    """Whether the weights are the same, but for their order."""
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(one, other, strict=True))


def _weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
