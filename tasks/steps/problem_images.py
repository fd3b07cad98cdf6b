"""Reads the images of data set rows: from bytes in the row, or from files of one folder; checks and prepares them.

Knows files, image formats and limits. Must not know problems or models. Everything in a row is hostile: a path may
lead anywhere, a file may be anything.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import json
import math
import warnings
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from PIL import Image, ImageOps

from conf.problems import Images
from tasks.runtime.artifacts import ArtifactRef
from tasks.steps.problem_files import ProblemsRefused, readable_errors

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_DECODED_PIXELS = 64_000_000
"""Pixels of a file that is decoded at all; three bytes of memory each."""
MAX_ASPECT_RATIO = 100
"""Between the sides. Image processors of the Qwen2-VL family refuse 200."""
AS_THEY_ARE = {("PNG", "RGB"), ("PNG", "L"), ("JPEG", "RGB"), ("JPEG", "L")}
"""Formats and modes of files that every program decodes to the same pixels."""
JPEG_QUALITY = 95
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

    def read(self, values: list[Any]) -> tuple[bytes, ...]:
        """The images in a row's fields, as files that all programs decode alike. Raises InvalidImage."""
        found = entries_of(values)
        if not found:
            raise InvalidImage("no-image", "the row has no image; correct columns.images, or leave such rows out")
        if len(found) > self._settings.max_count:
            detail = f"{len(found)} images; images.max_count allows {self._settings.max_count}"
            raise InvalidImage("too-many-images", detail)
        return tuple(self._prepared(self._content(one)) for one in found)

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
        the folder, through `..` or through a link."""
        if not self._settings.folder:
            detail = f"the row names the file {path[:80]!r}; set images.folder to the folder that holds it"
            raise InvalidImage("no-folder", detail)
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "://" in path or "\0" in path:
            raise InvalidImage("outside-folder", f"{path[:80]!r} is not a path within images.folder")
        files, root = fsspec.url_to_fs(self._settings.folder)
        place = f"{root.rstrip('/')}/{path}"
        if "file" in files.protocol and not Path(place).resolve().is_relative_to(Path(root).resolve()):
            raise InvalidImage("outside-folder", f"{path[:80]!r} is a link that leads out of images.folder")
        try:
            size = files.size(place)
            if not files.isfile(place) or size is None:
                raise FileNotFoundError
            if size > self._settings.max_bytes:
                raise _too_large(size, self._settings.max_bytes)
            return files.cat_file(place)
        except (OSError, ValueError):
            raise InvalidImage("missing-image", f"no readable file {path[:80]!r} in images.folder") from None

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
            lossy = picture.format == "JPEG"
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
    return [info.get(name) for name in ("size", "mtime", "LastModified", "ETag")]


def entries_of(value: Any) -> list[Any]:
    """The images in fields: none, one, or lists of them."""
    if isinstance(value, list | tuple):
        return [entry for one in value for entry in entries_of(one)]
    return [] if value is None or value == "" else [value]


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
    """In RGB; what is transparent becomes white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _encoded(picture: Image.Image, lossy: bool) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY) if lossy else picture.save(file, "PNG")
    return file.getvalue()
