"""Places where objects lie: a folder of this machine, or a storage behind a URL of fsspec.

An object is a file or a folder. Under its final name it is whole: a folder of this machine is renamed into place, and
beside a remote object its contents are written last. It knows file systems. It must not know what objects mean.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from conf.errors import ReadableError
from models.outages import repeats_while
from tasks.runtime.contents import Contents
from tasks.runtime.failures import is_transient
from tasks.runtime.fetched import FetchedFiles

ROWS = ".parquet"
"""Ending of objects that are files."""
CONTENTS = ".contents.json"
PROBE = ".brevity"
"""An empty file in a storage that was empty, to see that it can be written to."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
"""File systems of fsspec without folders."""
survives_outages = repeats_while(is_transient)


class ArtifactDamaged(ReadableError):
    """An artifact's content is missing or differs from its digest. Counts as a cache miss."""


class NoStorage(ReadableError):
    """A storage that cannot be read: no installed package does, or it refuses."""


class ObjectStorage(Protocol):
    """Objects and small files by their paths below a root."""

    root: str

    def publish(self, path: str, local: Path, contents: Contents, move: bool) -> str:
        """Stores a copy of `local`, or `local` itself, unless the same is there. Returns its URI."""
        ...

    def fetch(self, uri: str, digest: str) -> Path:
        """The object on this machine. Raises ArtifactDamaged."""
        ...

    def read(self, path: str) -> bytes:
        """Of a small file. Raises FileNotFoundError."""
        ...

    def write(self, path: str, content: bytes) -> None: ...

    def touch(self, path: str) -> None:
        """Makes the modification time of a small file the present."""
        ...

    def close(self) -> None: ...


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. Listings are never remembered: other machines write, too.

    Raises NoStorage.
    """
    try:
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise NoStorage(f"{url}: {error}; install the package, or name another storage") from None


def is_local(url: str) -> bool:
    return isinstance(file_system(url)[0], LocalFileSystem)


class LocalObjects:
    """A folder of this machine, or of a file system that it has mounted."""

    def __init__(self, root: str):
        self.root = file_system(root)[1].rstrip("/")

    def publish(self, path: str, local: Path, contents: Contents, move: bool) -> str:
        """Copies or moves to a temporary name first. A damaged object under the final name is moved away."""
        target = Path(self.root, path)
        if target.exists():
            if Contents.of(target).digest == contents.digest:
                return str(target)
            target.rename(self._temporary(target.parent.parent))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary(target.parent.parent)
        if move:
            shutil.move(local, temporary)
        else:
            _copy(local, temporary)
        self._rename(temporary, target, contents)
        return str(target)

    def _temporary(self, folder: Path) -> Path:
        return folder / f".{uuid.uuid4().hex}"

    def _rename(self, temporary: Path, target: Path, contents: Contents) -> None:
        """When another run has published the same content first, removes `temporary`."""
        try:
            os.rename(temporary, target)  # fails where a folder `target` exists
        except OSError:
            if Contents.of(target).digest != contents.digest:
                raise
            shutil.rmtree(temporary)

    def fetch(self, uri: str, digest: str) -> Path:
        _ = digest  # verified before its step's result was taken from the cache
        return Path(uri)

    def read(self, path: str) -> bytes:
        return Path(self.root, path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        target = Path(self.root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary(target.parent)
        temporary.write_bytes(content)
        temporary.rename(target)

    def touch(self, path: str) -> None:
        try:
            os.utime(Path(self.root, path))
        except PermissionError:  # another user's: it is written again
            self.write(path, self.read(path))

    def close(self) -> None: ...


class RemoteObjects:
    """A storage behind a URL. Objects are read from copies on this machine, which are verified once, when fetched."""

    def __init__(self, root: str, fetched: FetchedFiles):
        """Raises NoStorage, before anything is made that could not be stored."""
        self.root, self._fetched = root.rstrip("/"), fetched
        self._files, _ = file_system(root)
        try:
            self._validate_access()
        except Exception as error:  # clients of remote storages raise many types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise NoStorage(f"{root}: {reason}; keys come from the environment of this process") from None

    @survives_outages
    def _validate_access(self) -> None:
        try:
            self._files.ls(self.root)
        except FileNotFoundError:  # nothing is stored yet, or there is no such bucket
            self._write(f"{self.root}/{PROBE}", b"")

    @survives_outages
    def publish(self, path: str, local: Path, contents: Contents, move: bool) -> str:
        """Equal objects of other machines may be written at the same time: each file has the same content."""
        _ = move  # what is left of `local` is the caller's
        target = f"{self.root}/{path}"
        if _remote_contents(target) != contents:
            names = list(contents.files)
            self._make_folders(*(f"{target}{name}" for name in names))
            self._files.put([f"{local}{name}" for name in names], [f"{target}{name}" for name in names])
            self._write(contents_name(target), contents.model_dump_json().encode())
        return target

    def _make_folders(self, *targets: str) -> None:
        """Object stores have no folders; some make a bucket where one is asked for."""
        if not OBJECT_STORES & set(_as_tuple(self._files.protocol)):
            for folder in {target.rpartition("/")[0] for target in targets}:
                self._files.makedirs(folder, exist_ok=True)

    @survives_outages
    def fetch(self, uri: str, digest: str) -> Path:
        name = f"{digest}{ROWS}" if uri.endswith(ROWS) else digest
        if copy := self._fetched.held(name):
            return copy
        contents = _remote_contents(uri)
        if contents is None or contents.digest != digest:
            raise ArtifactDamaged(f"{uri} is missing; start the run again: it is made anew")
        download = partial(self._download, uri, contents)
        return self._fetched.path(name, contents.bytes, download, contents.has_sizes)

    def _download(self, uri: str, contents: Contents, path: Path) -> None:
        """Twice, if what came differs from the object's digest: most damage is on the way, or here. After that the
        object counts as missing, so that the next run makes it again. Raises ArtifactDamaged."""
        names = list(contents.files)
        for name in names:
            Path(f"{path}{name}").parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            self._files.get([f"{uri}{name}" for name in names], [f"{path}{name}" for name in names])
            if Contents.of(path) == contents:
                return
        self._files.rm_file(contents_name(uri))
        raise ArtifactDamaged(f"{uri} has changed; start the run again: it is made anew")

    @survives_outages
    def read(self, path: str) -> bytes:
        return self._files.cat_file(f"{self.root}/{path}")

    @survives_outages
    def write(self, path: str, content: bytes) -> None:
        self._write(f"{self.root}/{path}", content)

    def _write(self, target: str, content: bytes) -> None:
        self._make_folders(target)
        self._files.pipe_file(target, content)

    def touch(self, path: str) -> None:
        self.write(path, self.read(path))

    def close(self) -> None:
        self._fetched.close()


def _as_tuple(protocol: str | Sequence[str]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def verify_object(uri: str, digest: str) -> None:
    """Raises ArtifactDamaged if the object is missing or has another content: on this machine all of it is read, in a
    remote storage the names and sizes of its files."""
    if is_local(uri):
        with suppress(FileNotFoundError):
            if Contents.of(Path(uri)).digest != digest:
                raise ArtifactDamaged(f"{uri} has changed")
            return
    else:
        contents = _remote_contents(uri)
        if contents and contents.digest == digest:
            return
    raise ArtifactDamaged(f"{uri} is missing")


@survives_outages
def _remote_contents(uri: str) -> Contents | None:
    """What the object holds; None if it is missing, not whole, or has files of other sizes."""
    files, path = file_system(uri)
    with suppress(FileNotFoundError, ValueError):
        contents = Contents.model_validate_json(files.cat_file(contents_name(path)))
        found = files.find(path, detail=True) if contents.is_folder else {path: files.info(path)}
        sizes = {name: found[f"{path}{name}"]["size"] for name in contents.files if f"{path}{name}" in found}
        if sizes == {name: file.bytes for name, file in contents.files.items()}:
            return contents
    return None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)


def contents_name(uri: str) -> str:
    """Beside a remote object: the file that lists what it holds."""
    return f"{uri.removesuffix(ROWS)}{CONTENTS}"
