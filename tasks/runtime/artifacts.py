"""Artifacts: results of steps, addressed by their content and written atomically. Steps exchange references to them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pydantic import AwareDatetime, BaseModel, ConfigDict

from models.files import file_digest
from reasoning.records import Record, StageCount
from tasks.runtime.rows import RowFile, read_rows, read_tables

R = TypeVar("R", bound=Record)
OBJECTS, MANIFESTS = "objects", "manifests"
"""Folders of a store."""
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}")
"""Name of a file or folder in them that was not written to its end, or is damaged."""


class ArtifactDamaged(RuntimeError):
    """An artifact's content is missing or differs from its digest. Counts as a cache miss."""


class ArtifactRef(BaseModel):
    """A reference to an artifact: its kind, location, digest and number of rows."""

    model_config = ConfigDict(frozen=True)

    kind: str
    uri: str
    digest: str
    """SHA-256 of the content. Identifies the artifact; `uri` does not."""
    rows: int
    count: StageCount | None = None
    """Ledger line of the step that made it."""
    entry: int | None = None
    """Position of its step in the run's ledger; None for an artifact that no step made. Two steps may make the same
    content."""
    label: str = ""
    """What it is called in the names of task runs: a model's name, or a set of problems'."""

    def called(self, label: str) -> ArtifactRef:
        return self.model_copy(update={"label": label})

    def fingerprint(self) -> str:
        return f"{self.kind}:{self.digest}"

    def verify(self) -> None:
        """Raises ArtifactDamaged when the content is missing or has changed."""
        try:
            digest = content_digest(self.uri)
        except FileNotFoundError:
            raise ArtifactDamaged(f"{self.uri} is missing") from None
        if digest != self.digest:
            raise ArtifactDamaged(f"{self.uri} has changed")


class Manifest(BaseModel):
    """Recipe and result of a step. The file's modification time is when the result was last used."""

    recipe: dict[str, Any]
    artifact: ArtifactRef
    made: AwareDatetime | None = None
    """When the result was recorded first; None in files of earlier versions."""


class ArtifactStore:
    """Stores `objects/<kind>/<digest>` and `manifests/<key>.json` under a root folder or fsspec URL."""

    def __init__(self, root: str):
        self._files, path = fsspec.url_to_fs(root)
        self._root = self._files.unstrip_protocol(path).removeprefix("file://").rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self._files, LocalFileSystem)

    def publish_rows(self, kind: str, rows: Sequence[Record] | RowFile, count: StageCount) -> ArtifactRef:
        """Writes rows as one Parquet file."""
        if not isinstance(rows, RowFile):
            with RowFile() as given:
                given.extend(rows)
                return self.publish_rows(kind, given, count)
        file = rows.finish()
        digest = content_digest(str(file))
        uri = self._publish(kind, file, f"{digest}.parquet", digest)
        return ArtifactRef(kind=kind, uri=uri, digest=digest, rows=len(rows), count=count)

    def publish_folder(self, kind: str, folder: Path, count: StageCount, move: bool = False) -> ArtifactRef:
        """Copies or moves a local folder into the store."""
        digest = content_digest(str(folder))
        uri = self._publish(kind, folder, digest, digest, move)
        return ArtifactRef(kind=kind, uri=uri, digest=digest, rows=count.rows_out, count=count)

    def _publish(self, kind: str, local: Path, name: str, digest: str, move: bool = False) -> str:
        """Copies or moves to a temporary name, then moves into place, so an object under its final name is complete.

        A damaged object under the final name is moved away first. Returns the URI.
        """
        target, is_folder = f"{self._root}/{OBJECTS}/{kind}/{name}", local.is_dir()
        if self._files.exists(target):
            if content_digest(target) == digest:
                return target
            self._files.mv(target, self._temporary_name(OBJECTS), recursive=is_folder)
        temporary = self._temporary_name(OBJECTS)
        self._files.makedirs(f"{self._root}/{OBJECTS}/{kind}", exist_ok=True)
        if move and self.is_local:
            shutil.move(local, temporary)
        else:
            self._files.put(str(local), temporary, recursive=is_folder)
        self._move(temporary, target, is_folder)
        return target

    def _temporary_name(self, folder: str) -> str:
        return f"{self._root}/{folder}/.{uuid.uuid4().hex}"

    def _move(self, temporary: str, target: str, recursive: bool) -> None:
        """Moves into place. When another run has published the same content first, removes `temporary`."""
        if not self.is_local:
            self._files.mv(temporary, target, recursive=recursive)
            return
        try:
            os.rename(temporary, target)  # unlike mv, fails where a folder `target` exists
        except OSError:
            if content_digest(target) != content_digest(temporary):
                raise
            self._files.rm(temporary, recursive=True)

    def rows(self, ref: ArtifactRef, kind: type[R]) -> list[R]:
        """The rows of an artifact as records of class `kind`."""
        return list(self.stream(ref, kind))

    def stream(self, ref: ArtifactRef, kind: type[R]) -> Iterator[R]:
        """The same, with one group of rows in memory at a time."""
        with fsspec.open(ref.uri, "rb") as file:
            yield from read_rows(file, kind)

    def columns(self, ref: ArtifactRef, *names: str) -> list[tuple[Any, ...]]:
        """These columns of an artifact, a tuple for each row; the others are not read."""
        if not ref.rows:  # a file without rows has no columns
            return []
        with fsspec.open(ref.uri, "rb") as file:
            table = pq.read_table(file, columns=list(names))
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    def plain_rows(self, ref: ArtifactRef) -> Iterator[dict[str, Any]]:
        """The rows of an artifact as JSON values, with one group of rows in memory at a time."""
        with fsspec.open(ref.uri, "rb") as file:
            for table in read_tables(file):
                yield from table.to_pylist()

    def local_path(self, ref: ArtifactRef) -> Path:
        """Path of the artifact on this machine; downloads it from a remote store."""
        if self.is_local or "://" not in ref.uri:
            return Path(ref.uri)
        target = Path(tempfile.gettempdir()) / "brevity" / Path(ref.uri).name
        if not target.exists():
            download = target.with_name(f".{uuid.uuid4().hex}")
            self._files.get(ref.uri, str(download), recursive=True)
            download.rename(target)
        return target

    def recorded(self, key: str) -> ArtifactRef | None:
        """The result that the manifest of `key` names, if it is there and whole."""
        manifest = self._manifest(key)
        with suppress(ArtifactDamaged):
            if manifest:
                manifest.artifact.verify()
                return manifest.artifact
        return None

    def record(self, key: str, recipe: dict[str, Any], ref: ArtifactRef) -> None:
        """Writes a manifest of recipe and result, so that each figure can be traced back to its inputs.

        A manifest that says the same already gets a new modification time: the result was used now.
        """
        earlier = self._manifest(key)
        if earlier is None or (earlier.recipe, earlier.artifact) != (recipe, ref):
            self._write_manifest(key, Manifest(recipe=recipe, artifact=ref, made=datetime.now(UTC)))
            return
        with suppress(OSError):  # removed meanwhile, or another user's: it is written again
            if self.is_local:
                os.utime(self._manifest_path(key))
                return
        self._write_manifest(key, earlier)

    def _manifest_path(self, key: str) -> str:
        return f"{self._root}/{MANIFESTS}/{key}.json"

    def _manifest(self, key: str) -> Manifest | None:
        """None where there is none, or a damaged one."""
        with suppress(FileNotFoundError, ValueError):
            return Manifest.model_validate_json(self._files.cat_file(self._manifest_path(key)))
        return None

    def _write_manifest(self, key: str, manifest: Manifest) -> None:
        temporary = self._temporary_name(MANIFESTS)
        self._files.makedirs(f"{self._root}/{MANIFESTS}", exist_ok=True)
        body = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
        self._files.pipe_file(temporary, body.encode())
        self._files.mv(temporary, self._manifest_path(key))


def content_digest(uri: str) -> str:
    """SHA-256 of a file, or of a folder's file names and contents."""
    files, path = fsspec.url_to_fs(uri)
    if files.isfile(path):
        return _file_digest(files, path)
    names = sorted(files.find(path))
    if not names:
        raise FileNotFoundError(uri)
    lines = (f"{name.removeprefix(path)}:{_file_digest(files, name)}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_digest(files: Any, path: str) -> str:
    if isinstance(files, LocalFileSystem):
        return file_digest(Path(path))
    with files.open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
