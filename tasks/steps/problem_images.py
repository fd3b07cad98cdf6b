"""Reads the images of data set rows: from bytes in the row, or from files of one folder; checks and prepares them.

Knows files, image formats and limits. Must not know problems or models. Everything in a row is hostile: a path may
lead anywhere, a file may be anything.
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import io
import json
import math
import warnings
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, ImageOps

from conf.problems import Images
from tasks.runtime.artifacts import ArtifactRef
from tasks.steps.problem_files import ProblemsRefused, readable_errors

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_DECODED_PIXELS = 64_000_000
"""Pixels of a file that is decoded at all; three bytes of memory each."""
MAX_ASPECT_RATIO = 100
"""Between the sides. Image processors of the Qwen2-VL family refuse 200."""
AS_THEY_ARE = {("PNG", "RGB"), ("PNG", "L"), ("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB")}
"""Formats and modes of files that every program decodes to the same pixels. MPO is a JPEG file of some telephones."""
JPEG_QUALITY = 95
STATE = ("size", "mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "blob_id", "CRC", "date_time")
"""What file systems of fsspec tell of a file's content and age."""
ORIENTATION = 0x0112
"""EXIF tag: how a picture is to be turned."""


class InvalidImage(Exception):
    """A row's image cannot be used."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class ImageReader:
    """Reads the images of rows; counts those that it scales down."""

    def __init__(self, settings: Images):
        self._settings = settings
        self.scaled_down = 0

    def read(self, entries: Sequence[Any]) -> tuple[bytes, ...]:
        """The images of a row (see `entries_of`), as files that all programs decode alike. Raises InvalidImage."""
        if not entries:
            raise InvalidImage("no-image", "the row has no image; correct columns.images, or leave such rows out")
        if len(entries) > self._settings.max_count:
            detail = f"{len(entries)} images; images.max_count allows {self._settings.max_count}"
            raise InvalidImage("too-many-images", detail)
        return tuple(self._prepared(self._content(one)) for one in entries)

    def _content(self, entry: Any) -> bytes:
        if isinstance(entry, Mapping) and isinstance(entry.get("bytes"), bytes):
            content = entry["bytes"]
        elif isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
            content = self._file(entry["path"])
        elif isinstance(entry, bytes):
            content = entry
        elif isinstance(entry, str) and entry.startswith("data:"):
            content = _from_data_url(entry, self._settings.max_bytes)
        elif isinstance(entry, str):
            content = self._file(entry)
        else:
            raise InvalidImage("not-an-image", f"a field of columns.images holds a {type(entry).__name__}, no image")
        if len(content) > self._settings.max_bytes:
            raise _too_large(len(content), self._settings.max_bytes)
        return content

    def _file(self, path: str) -> bytes:
        """The content of a file in the folder of the settings. Raises InvalidImage, also for a path that leads out of
        the folder, through `..` or through a link; ProblemsRefused where the folder itself cannot be read."""
        folder, shown = self._settings.folder, repr(path[:80])
        if not folder:
            detail = f"the row names the file {shown}; set images.folder to the folder that holds it"
            raise InvalidImage("no-folder", detail)
        with readable_errors(folder):
            files, root = fsspec.url_to_fs(folder)
            place = _place_within(files, root, path)
            size = None if place is None else _size_of(files, place)
            content = files.cat_file(place) if size is not None and size <= self._settings.max_bytes else b""
        if place is None:
            raise InvalidImage(
                "outside-folder", f"{shown} is no path within images.folder, or a link that leads out of it"
            )
        if size is None:
            raise InvalidImage("missing-image", f"no file {shown} in images.folder")
        if size > self._settings.max_bytes:
            raise _too_large(size, self._settings.max_bytes)
        return content

    def _prepared(self, content: bytes) -> bytes:
        """`content`, or the same picture in plain RGB, upright, and within the limit of pixels."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._decoded(content)
        except InvalidImage:
            raise
        except Image.DecompressionBombError:
            raise InvalidImage(
                "image-too-large", f"more pixels than the {MAX_DECODED_PIXELS:,} that are decoded"
            ) from None
        except Exception as error:  # a decoder raises almost anything on a damaged file
            detail = f"not readable as {', '.join(FORMATS)} ({type(error).__name__}); replace the file"
            raise InvalidImage("broken-image", detail) from None

    def _decoded(self, content: bytes) -> bytes:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_DECODED_PIXELS:
                detail = f"{width} × {height} pixels; more than {MAX_DECODED_PIXELS:,} are not decoded"
                raise InvalidImage("image-too-large", detail)
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                detail = f"{width} × {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other"
                raise InvalidImage("extreme-sides", detail)
            picture.load()
            is_turned = picture.getexif().get(ORIENTATION, 1) != 1
            is_plain = (picture.format, picture.mode) in AS_THEY_ARE and not is_turned
            if is_plain and "transparency" not in picture.info and width * height <= self._settings.max_pixels:
                return content
            lossy = picture.format in ("JPEG", "MPO")
            return _encoded(self._within_limit(_plain(ImageOps.exif_transpose(picture))), lossy)

    def _within_limit(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if width * height <= self._settings.max_pixels:
            return picture
        self.scaled_down += 1
        scale = math.sqrt(self._settings.max_pixels / (width * height))
        return picture.resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.LANCZOS)


def folder_state(settings: Images) -> ArtifactRef | None:
    """The folder of images by names, sizes and times of its files, for cache keys; None without one. A step that reads
    them publishes their content. Raises ProblemsRefused."""
    if not settings.folder:
        return None
    with readable_errors(settings.folder):
        files, root = fsspec.url_to_fs(settings.folder)
        if not files.isdir(root):
            raise ProblemsRefused(f"{settings.folder}: no such folder; correct images.folder")
        listed = files.find(root, detail=True)
    states = [[name.removeprefix(root), *map(str, _state(info))] for name, info in sorted(listed.items())]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return ArtifactRef(kind="folder", uri=settings.folder, digest=digest, rows=len(states))


def _state(info: Mapping[str, Any]) -> list[Any]:
    return [info.get(name) for name in STATE]


def entries_of(values: Sequence[Any]) -> list[Any]:
    """The images in fields: none, one, or a list of them each."""
    found = [entry for value in values for entry in (value if isinstance(value, list | tuple) else [value])]
    return [entry for entry in found if entry is not None and entry != ""]


def _place_within(files: AbstractFileSystem, root: str, path: str) -> str | None:
    """Where `path` lies within the folder `root`; None if it leads out of it."""
    is_local, parts = isinstance(files, LocalFileSystem), PurePosixPath(path)
    # A server may read an escaped ".." in a URL as one.
    strange = "\0" if is_local else "\0%?#\\"
    if parts.is_absolute() or ".." in parts.parts or "://" in path or any(sign in path for sign in strange):
        return None
    place = f"{root.rstrip('/')}/{path}"
    try:
        is_within = not is_local or Path(place).resolve().is_relative_to(Path(root).resolve())
    except (RuntimeError, ValueError):  # links in a circle, text that no file system can spell
        return None
    return place if is_within else None


def _size_of(files: AbstractFileSystem, place: str) -> int | None:
    """Size of a file in bytes; None if there is none."""
    try:
        return files.size(place) if files.isfile(place) else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise


def _from_data_url(url: str, limit: int) -> bytes:
    if len(url) > 2 * limit:
        raise _too_large(len(url), limit)
    try:
        return b64decode(url.partition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("broken-image", "a data: URL that is not base64") from None


def _too_large(size: int, limit: int) -> InvalidImage:
    return InvalidImage("image-too-large", f"{size:,} bytes; images.max_bytes allows {limit:,}")


def _plain(picture: Image.Image) -> Image.Image:
    """In RGB, eight bits a channel; what is transparent becomes white."""
    if picture.mode.startswith("I"):  # sixteen bits of grey, which Pillow would clip
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _encoded(picture: Image.Image, lossy: bool) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY) if lossy else picture.save(file, "PNG")
    return file.getvalue()
