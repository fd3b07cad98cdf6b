"""Folders with real data, cases and tokenizers, named by environment variables."""

import os
from pathlib import Path


def folder(variable: str) -> Path | None:
    """The folder named by an environment variable, if it exists."""
    path = os.environ.get(variable, "")
    return Path(path) if path and Path(path).is_dir() else None
