"""The files of a checkpoint folder: JSON files and safetensors headers, checked for completeness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import ReadableError

SYNC_CHECK_FILE = "sync_check.json"
"""Written by the trainer into each checkpoint: token ids, and the log-probs that the trained model gives them."""
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
"""Bytes; the limit of the safetensors format."""


class CheckpointError(ReadableError):
    """The checkpoint cannot be used; the message says why."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises CheckpointError for anything else."""
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise _pointer(path)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({first_line(error)}); download the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object; download the file again")
    return found


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file, from its header. Raises CheckpointError for an invalid or
    truncated file."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise _pointer(path)
        size = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(size) if size <= MAX_HEADER_BYTES else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: list(map(int, entry["shape"])) for name, entry in entries.items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a safetensors file; download it again") from None
    if path.stat().st_size != 8 + size + end:
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes, but its header says {8 + size + end:,}; download it again"
        )
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The weight files to load: those of the index, or model.safetensors; folders may hold other formats, too. Raises
    CheckpointError if there are none or an indexed one is missing."""
    weights = {path.name: path for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise CheckpointError(f"{folder}: no *.safetensors weights (other formats are not loaded)")
    index = folder / "model.safetensors.index.json"
    loaded = _shards(index) if index.is_file() else weights.keys() & {"model.safetensors"} or weights.keys()
    if missing := sorted(loaded - weights.keys()):
        raise CheckpointError(f"{folder}: the index names weights that are not there: {', '.join(missing)}")
    return [path for name, path in weights.items() if name in loaded]


def _shards(index: Path) -> set[str]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise CheckpointError(f"{index}: no weight_map; download the file again")
    return set(map(str, named.values()))


def all_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of each tensor of the folder's weights. Raises CheckpointError for incomplete weights."""
    return {name: shape for path in weight_files(folder) for name, shape in tensor_shapes(path).items()}


def first_line(error: object) -> str:
    """The first line of an error's text, printable; other libraries' messages span many lines."""
    text = str(error).strip()
    return printable(text.splitlines()[0][:300]) if text else type(error).__name__


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)


def _pointer(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: a Git LFS pointer instead of the file; run `git lfs pull` in {path.parent}")
