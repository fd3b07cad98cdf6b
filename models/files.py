"""Atomic writes of small files, digests of large ones, permissions."""

from __future__ import annotations

import hashlib
from pathlib import Path

LARGE = 2**26
"""Bytes from which on a file is read once in a process, as long as it is the same file and was not written to."""
_digests: dict[tuple[int, ...], str] = {}
"""Of large files that were read."""


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes `content` to a temporary file and renames it, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.rename(path)


def make_readable(folder: Path) -> None:
    """Lets other users read the files of `folder`: safetensors writes them for their owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Weights of a model have several readers in a run, and take a minute to read."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return _digest(path)
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)  # not the path: it may be renamed
    if identity not in _digests:
        _digests[identity] = _digest(path)
    return _digests[identity]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
