"""Reads what a root of step results holds, removes results, and keeps pins.

A name is only used in a path when it was found in a folder's listing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.runtime.artifacts import MANIFESTS, OBJECTS, TEMPORARY_NAME, Manifest
from tasks.runtime.cache_index import (
    CachedResult,
    CacheError,
    CacheIndex,
    Leftover,
    LeftoverKind,
    Removal,
    StoredObject,
)
from tasks.runtime.object_storage import contents_name
from tasks.runtime.run_directory import RECORDS, SCRATCH, SKIPPED_ROWS, local_root

PINS = "pins"
"""Folder of a root with a file for each pinned key, which holds the pin's note."""
KEY = r"[a-z0-9_-]+-[0-9a-f]{40}"
FILES_OF_KEY = {SKIPPED_ROWS: "{}.jsonl", RECORDS: "{}", MANIFESTS: "{}.json"}
"""By folder, the file of a result with its key, in the order of removal."""
LEFTOVERS = {
    SCRATCH: (LeftoverKind.SCRATCH, re.compile(rf"(\.done-)?{KEY}(-[0-9a-f]{{32}})?")),
    OBJECTS: (LeftoverKind.TEMPORARY, TEMPORARY_NAME),
    MANIFESTS: (LeftoverKind.TEMPORARY, TEMPORARY_NAME),
    SKIPPED_ROWS: (LeftoverKind.TEMPORARY, re.compile(rf"\.{KEY}\.jsonl")),
}
"""By folder, the names of leftovers. Anything else in these folders is left alone."""
OBJECT_NAME = re.compile(r"[0-9a-f]{64}(\.parquet)?")


class Stored(NamedTuple):
    """Size of a file, or of all files of a folder, and when the newest was modified."""

    bytes: int
    modified: datetime


class StoredFolder:
    """A folder of any file system, whether or not it exists."""

    def __init__(self, files: Any, path: str):
        self._files, self.path = files, path

    def exists(self) -> bool:
        return self._files.isdir(self.path)

    def entries(self) -> dict[str, Stored]:
        """What lies directly within, by name. Raises CacheError, and OSError where a folder cannot be listed: it must
        not count as empty."""
        self._files.invalidate_cache()
        found = {info["name"].rstrip("/").rpartition("/")[2]: self._stored(info) for info in self._list(self.path)}
        return {name: stored for name, stored in sorted(found.items()) if stored}

    def _list(self, path: str) -> list[dict[str, Any]]:
        try:
            return [info for info in self._files.ls(path, detail=True) if info["name"].rstrip("/") != path]
        except FileNotFoundError:
            return []

    def _stored(self, info: dict[str, Any]) -> Stored | None:
        """Of a file, or of a folder with all that it holds. None for a file that is gone meanwhile."""
        is_folder, modified = info["type"] == "directory", self._modified(info)
        own = [Stored(0 if is_folder else info["size"], modified)] if modified else []
        inner = [self._stored(part) for part in self._list(info["name"].rstrip("/"))] if is_folder else []
        parts = own + [part for part in inner if part]
        return Stored(sum(part.bytes for part in parts), max(part.modified for part in parts)) if parts else None

    def _modified(self, info: dict[str, Any]) -> datetime | None:
        """None for a folder of an object store, and for a file that is gone meanwhile."""
        if isinstance(self._files, LocalFileSystem):
            return datetime.fromtimestamp(info["mtime"], UTC)
        if info["type"] == "directory":
            return None
        try:
            return self._files.modified(info["name"])
        except FileNotFoundError:
            return None
        except NotImplementedError:
            raise CacheError(f"{self.path}: this storage does not tell when a file was last modified") from None

    def modified(self, name: str) -> datetime | None:
        """When a file was last modified; None where there is none."""
        self._files.invalidate_cache()
        try:
            return self._modified(self._files.info(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None

    def folder(self, name: str) -> StoredFolder:
        return StoredFolder(self._files, f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        return self._files.cat_file(f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        self._files.makedirs(self.path, exist_ok=True)
        self._files.pipe_file(f"{self.path}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes a file or folder, if it is there."""
        path = f"{self.path}/{name}"
        with suppress(FileNotFoundError):
            if isinstance(self._files, LocalFileSystem):
                self._files.rm(path, recursive=True)
            else:  # fsspec's rm would take * and ? in a name for a pattern
                for file in self._files.find(path):
                    self._files.rm_file(file)


class CacheFiles:
    """The folders of a root. `work` and `set-aside` of a remote root are this machine's; its `cache` is Prefect's own
    storage, which is left alone: a record without its object counts as a cache miss."""

    def __init__(self, root: str):
        """Raises CacheError when there are no results in `root`."""
        self._root = root
        try:
            files, path = fsspec.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise CacheError(f"{root}: {error}; give --root a folder, or the URL of a storage") from None
        self._is_local = isinstance(files, LocalFileSystem)
        local = local_root(root, self._is_local)
        self._folders = {name: StoredFolder(files, f"{path.rstrip('/')}/{name}") for name in (OBJECTS, MANIFESTS, PINS)}
        for name in (SCRATCH, SKIPPED_ROWS, *([RECORDS] if self._is_local else [])):
            self._folders[name] = StoredFolder(LocalFileSystem(), str(local / name))
        if not (self._folders[MANIFESTS].exists() or self._folders[OBJECTS].exists()):
            raise CacheError(f"{root}: holds no results of steps; give --root the folder or URL of storage.root")

    def index(self) -> CacheIndex:
        """Reads all manifests, pins, names and sizes. Raises CacheError for a damaged manifest."""
        stored = {name: folder.entries() for name, folder in self._folders.items()}
        manifests = self._manifests(stored[MANIFESTS])
        results = [self._result(key, manifest, stored) for key, manifest in manifests.items()]
        leftovers = [*self._unfinished(stored), *self._without_manifest(stored, manifests)]
        return CacheIndex(results, self._objects(stored[OBJECTS]), leftovers)

    def _manifests(self, names: Collection[str]) -> dict[str, Manifest]:
        """By key. Skips one that is removed meanwhile."""
        found = {}
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                with suppress(FileNotFoundError):
                    found[name.removesuffix(".json")] = self._manifest(name)
        return found

    def _manifest(self, name: str) -> Manifest:
        try:
            return Manifest.model_validate_json(self._folders[MANIFESTS].read(name))
        except ValueError as error:
            raise CacheError(
                f"{self._folders[MANIFESTS].path}/{name}: not a manifest ({str(error).splitlines()[0]}); remove the "
                "file, and the next run of its step writes it again"
            ) from None

    def _result(self, key: str, manifest: Manifest, stored: dict[str, dict[str, Stored]]) -> CachedResult:
        files = [stored[folder].get(name.format(key)) for folder, name in FILES_OF_KEY.items() if folder in stored]
        note = self._folders[PINS].read(key).decode(errors="replace") if key in stored[PINS] else None
        return CachedResult(
            key=key,
            recipe=manifest.recipe,
            artifact=manifest.artifact,
            made=manifest.made,
            last_used=stored[MANIFESTS][f"{key}.json"].modified,
            pin=note,
            bytes=sum(file.bytes for file in files if file),
        )

    def _objects(self, kinds: Collection[str]) -> list[StoredObject]:
        return [
            StoredObject(kind, name, *found)
            for kind in kinds
            if not kind.startswith(".")
            for name, found in self._folders[OBJECTS].folder(kind).entries().items()
            if OBJECT_NAME.fullmatch(name)
        ]

    def _unfinished(self, stored: dict[str, dict[str, Stored]]) -> Iterator[Leftover]:
        for folder, (kind, names) in LEFTOVERS.items():
            for name, found in stored[folder].items():
                if names.fullmatch(name):
                    yield Leftover(kind, folder, name, *found)

    def _without_manifest(self, stored: dict[str, dict[str, Stored]], manifests: Collection[str]) -> Iterator[Leftover]:
        """Records and lists of local roots: beside a remote root they may be those of another root."""
        for kind, folder in ((LeftoverKind.RECORD, RECORDS), (LeftoverKind.LIST, SKIPPED_ROWS)):
            for name, found in stored[folder].items() if self._is_local else ():
                key = name.removesuffix(".jsonl")
                if re.fullmatch(KEY, key) and key not in manifests:
                    yield Leftover(kind, folder, name, *found)

    def pinned(self) -> list[str]:
        return list(self._folders[PINS].entries())

    def pin(self, key: str, note: str) -> None:
        """`key` must be that of a result of the index."""
        self._folders[PINS].write(key, note.encode(errors="replace"))

    def unpin(self, key: str) -> None:
        """`key` must be one of `pinned`."""
        self._folders[PINS].remove(key)

    def remove(self, removal: Removal, cutoff: datetime) -> int:
        """Removes results, then objects that no remaining manifest points at, then leftovers. Returns the bytes freed.

        A result that was used since `cutoff` after all stays, with its object. When this is interrupted, a remaining
        manifest still has its object, and an object without a manifest is removed the next time.
        """
        freed = sum(self._remove_result(result, cutoff) for result in removal.results)
        manifests = self._manifests(self._folders[MANIFESTS].entries())
        used = {manifest.artifact.fingerprint() for manifest in manifests.values()}
        for stored in removal.objects:
            if stored.fingerprint not in used:
                self._remove_object(stored)
                freed += stored.bytes
        for leftover in removal.leftovers:
            self._folders[leftover.folder].remove(leftover.name)
            freed += leftover.bytes
        return freed

    def _remove_object(self, stored: StoredObject) -> None:
        """The list of contents goes first: without it, an object that is removed in part counts as missing."""
        folder = self._folders[OBJECTS].folder(stored.kind)
        if not self._is_local:
            folder.remove(contents_name(stored.name))
        folder.remove(stored.name)

    def _remove_result(self, result: CachedResult, cutoff: datetime) -> int:
        """The manifest goes last: while it is there, an interrupted removal is found and completed the next time."""
        name = FILES_OF_KEY[MANIFESTS].format(result.key)
        last_used = self._folders[MANIFESTS].modified(name)
        if last_used is None or last_used >= cutoff:
            return 0
        for folder, file in FILES_OF_KEY.items():
            if folder in self._folders:
                self._folders[folder].remove(file.format(result.key))
        return result.bytes
