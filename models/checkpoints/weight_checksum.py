"""A checksum of a model's weights that does not depend on their layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

from models.checkpoints.adapters import read_adapter_config

REL_TOLERANCE = 1e-13
"""Relative tolerance, for different orders of summation. Even among 10⁹ weights, a single weight changed by one unit in
the last place exceeds it, unless that weight is far smaller than the mean."""
CHUNK = 2**24
"""Elements converted to float64 at a time: little memory is free beside a served model."""


def weight_checksum(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Sum of absolute weights and sum of squares, float64. Joining matrices or padding them with zeros, as servers do,
    does not change them."""
    sums: list[tuple[float, float]] = []
    for tensor in tensors:
        for piece in tensor.detach().reshape(-1).split(CHUNK):
            wide = piece.double()
            sums.append((float(wide.abs().sum()), float(wide.square().sum())))
    return [math.fsum(one) for one in zip(*sums, strict=True)]


def checksum_of_folder(folder: Path, dtype: str) -> list[float]:
    """`weight_checksum` of a checkpoint's weights cast to `dtype`; a tied output matrix is skipped."""
    tied = AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings
    weights = (weight for name, weight in _weights(folder) if not (tied and name == "lm_head.weight"))
    return weight_checksum(weight.to(getattr(torch, dtype)) for weight in weights)


def checksum_of_adapter(folder: Path, dtype: str) -> list[float]:
    """`weight_checksum` of LoRA adapters cast to `dtype`, their scale merged into the second matrix as vLLM does."""
    scale = read_adapter_config(folder).scale
    cast = ((name, weight.to(getattr(torch, dtype))) for name, weight in _weights(folder))
    return weight_checksum(weight * scale if ".lora_B." in name else weight for name, weight in cast)


def same_checksum(one: list[float], other: list[float]) -> bool:
    """Whether two checksums agree within the tolerance."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=REL_TOLERANCE) for a, b in zip(one, other, strict=True)
    )


def _weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
