"""What an object holds: sizes and digests of its files. Equal contents have equal digests, in every storage.

It knows files and folders of this machine. It must not know where objects are stored.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

from models.files import file_digest

WHOLE = ""
"""Name of the only file of an object that is no folder."""


class FileContent(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Contents(BaseModel):
    """The files of an object, by their names within it. Names within a folder begin with `/`."""

    model_config = ConfigDict(frozen=True)

    files: Annotated[dict[str, FileContent], Field(min_length=1)]

    @field_validator("files")
    @classmethod
    def _names_stay_within(cls, files: dict[str, FileContent]) -> dict[str, FileContent]:
        """Whoever writes to a storage must not have files written elsewhere on the machines that read it."""
        for name in files:
            first, *parts = name.split("/")
            if name != WHOLE and (first or not parts or {"", ".", ".."} & set(parts) or "\0" in name):
                raise ValueError(f"{name!r} is no name of a file within an object")
        if WHOLE in files and len(files) > 1:
            raise ValueError("a file holds no other files")
        return files

    @classmethod
    def of(cls, path: Path) -> Contents:
        """Of a file, or of a folder with at least one file. Raises FileNotFoundError."""
        if path.is_dir():
            files = {f"/{file.relative_to(path).as_posix()}": file for file in path.rglob("*") if file.is_file()}
        else:
            files = {WHOLE: path}
        if not files:
            raise FileNotFoundError(path)
        return cls(files={name: _content(files[name]) for name in sorted(files)})

    def has_sizes(self, path: Path) -> bool:
        """Whether the files of this size are at `path`."""
        found = {name: Path(f"{path}{name}") for name in self.files}
        return all(file.is_file() and file.stat().st_size == self.files[name].bytes for name, file in found.items())

    @property
    def is_folder(self) -> bool:
        return WHOLE not in self.files

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or of a folder's file names and contents."""
        if not self.is_folder:
            return self.files[WHOLE].sha256
        lines = (f"{name}:{file.sha256}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _content(file: Path) -> FileContent:
    return FileContent(bytes=file.stat().st_size, sha256=file_digest(file))
