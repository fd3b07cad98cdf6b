"""Atomic writes of small files."""

from __future__ import annotations

from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes `content` to a temporary file and renames it, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.rename(path)
