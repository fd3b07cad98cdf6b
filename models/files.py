"""Small files that are whole, or not there. Knows: renames. Must not know: what a file holds."""

from __future__ import annotations

from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """What stands under the name is never half-written."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.rename(path)
