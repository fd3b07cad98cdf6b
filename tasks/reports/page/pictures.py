"""Images of problems as the page shows them: small enough for a file with many problems.

It knows image files, which problems hold as PNG or JPEG alone. It must not know problems.
"""

from __future__ import annotations

import io

from PIL import Image

from reasoning.data_urls import data_url

MAX_BYTES = 60_000
"""Of an image that the page holds as it is."""
MAX_SIDE = 640
"""Pixels of a larger image's longer side."""


def picture_url(image: bytes) -> str:
    """An image as a `data:` URL; a large one scaled down."""
    return data_url(_scaled_down(image) if len(image) > MAX_BYTES else image)


def _scaled_down(image: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((MAX_SIDE, MAX_SIDE))
        small.save(file, "JPEG", quality=80)
    return file.getvalue()
