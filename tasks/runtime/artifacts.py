"""Artifacts: results of steps, addressed by their content and written atomically. Steps exchange references to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict

from reasoning.records import Record, StageCount
from tasks.runtime.contents import Contents
from tasks.runtime.fetched import FetchedFiles
from tasks.runtime.object_storage import (
    ROWS,
    ArtifactDamaged,
    LocalObjects,
    ObjectStorage,
    RemoteObjects,
    is_local,
    verify_object,
)
from tasks.runtime.rows import RowFile, read_rows, read_tables

R = TypeVar("R", bound=Record)
OBJECTS, MANIFESTS = "objects", "manifests"
"""Folders of a store."""
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}")
"""Name of a file or folder in them that was not written to its end, or is damaged."""


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
        verify_object(self.uri, self.digest)


class Manifest(BaseModel):
    """Recipe and result of a step. The file's modification time is when the result was last used."""

    recipe: dict[str, Any]
    artifact: ArtifactRef
    made: AwareDatetime | None = None
    """When the result was recorded first; None in files of earlier versions."""


class ArtifactStore:
    """Stores `objects/<kind>/<digest>` and `manifests/<key>.json` under a root folder or fsspec URL."""

    def __init__(self, root: str, fetched: FetchedFiles):
        """`fetched`: where artifacts of a URL are copied to when they are needed. Those of a folder need no copies."""
        self.is_local = is_local(root)
        self._objects: ObjectStorage = LocalObjects(root) if self.is_local else RemoteObjects(root, fetched)

    def publish_rows(self, kind: str, rows: Sequence[Record] | RowFile, count: StageCount) -> ArtifactRef:
        """Writes rows as one Parquet file."""
        if not isinstance(rows, RowFile):
            with RowFile() as given:
                given.extend(rows)
                return self.publish_rows(kind, given, count)
        file = rows.finish()
        contents = Contents.of(file)
        uri = self._objects.publish(f"{OBJECTS}/{kind}/{contents.digest}{ROWS}", file, contents, move=False)
        return ArtifactRef(kind=kind, uri=uri, digest=contents.digest, rows=len(rows), count=count)

    def publish_folder(self, kind: str, folder: Path, count: StageCount, move: bool = False) -> ArtifactRef:
        """Copies or moves a local folder into the store."""
        contents = Contents.of(folder)
        uri = self._objects.publish(f"{OBJECTS}/{kind}/{contents.digest}", folder, contents, move)
        return ArtifactRef(kind=kind, uri=uri, digest=contents.digest, rows=count.rows_out, count=count)

    def rows(self, ref: ArtifactRef, kind: type[R]) -> list[R]:
        """The rows of an artifact as records of class `kind`."""
        return list(self.stream(ref, kind))

    def stream(self, ref: ArtifactRef, kind: type[R]) -> Iterator[R]:
        """The same, with one group of rows in memory at a time."""
        with self.local_path(ref).open("rb") as file:
            yield from read_rows(file, kind)

    def columns(self, ref: ArtifactRef, *names: str) -> list[tuple[Any, ...]]:
        """These columns of an artifact, a tuple for each row; the others are not read."""
        if not ref.rows:  # a file without rows has no columns
            return []
        table = pq.read_table(self.local_path(ref), columns=list(names))
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    def plain_rows(self, ref: ArtifactRef) -> Iterator[dict[str, Any]]:
        """The rows of an artifact as JSON values, with one group of rows in memory at a time."""
        with self.local_path(ref).open("rb") as file:
            for table in read_tables(file):
                yield from table.to_pylist()

    def local_path(self, ref: ArtifactRef) -> Path:
        """Path of the artifact on this machine; a copy of a remote one. Raises ArtifactDamaged."""
        return self._objects.fetch(ref.uri, ref.digest) if "://" in ref.uri else Path(ref.uri)

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
        try:
            self._objects.touch(_manifest_path(key))
        except FileNotFoundError:  # removed meanwhile
            self._write_manifest(key, earlier)

    def _manifest(self, key: str) -> Manifest | None:
        """None where there is none, or a damaged one."""
        with suppress(FileNotFoundError, ValueError):
            return Manifest.model_validate_json(self._objects.read(_manifest_path(key)))
        return None

    def _write_manifest(self, key: str, manifest: Manifest) -> None:
        body = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
        self._objects.write(_manifest_path(key), body.encode())

    def close(self) -> None:
        """Gives back the copies of remote artifacts on this machine."""
        self._objects.close()


def _manifest_path(key: str) -> str:
    return f"{MANIFESTS}/{key}.json"
