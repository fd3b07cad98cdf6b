"""Images of rows: where they may come from, what is refused, and what reaches a model."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from conf.problems import Images
from tasks.steps.problem_files import ProblemsRefused
from tasks.steps.problem_images import ImageReader, InvalidImage, entries_of, folder_state


def png(size: tuple[int, int] = (8, 6), mode: str = "RGB", colour: Any = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, *([] if colour is None else [colour])).save(file, "PNG", **options)
    return file.getvalue()


def jpeg(size: tuple[int, int], mode: str = "RGB", exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "JPEG", **({"exif": exif} if exif else {}))
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def read(value: Any, **settings: Any) -> tuple[bytes, ...]:
    return ImageReader(Images(**settings)).read(entries_of([value]))


def size_of(image: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(image)).size


PLAIN = png()


@pytest.mark.parametrize(
    "value",
    [
        PLAIN,
        {"bytes": PLAIN, "path": "/etc/passwd"},
        "data:image/png;base64," + base64.b64encode(PLAIN).decode(),
        [PLAIN],
        [None, {"bytes": PLAIN, "path": None}],
    ],
)
def test_an_image_may_come_in_many_ways(value: Any):
    assert read(value) == (PLAIN,)


def test_a_path_is_read_from_the_folder(tmp_path: Path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a b.png").write_bytes(PLAIN)
    assert read("coco/a b.png", folder=str(tmp_path)) == (PLAIN,)
    assert read({"bytes": None, "path": "coco/a b.png"}, folder=str(tmp_path)) == (PLAIN,)
    assert read("coco/a b.png", folder=tmp_path.as_uri()) == (PLAIN,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "broken-image"),
        (b"not an image", "broken-image"),
        (PLAIN[:40], "broken-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "broken-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "broken-image"),
        (bomb(60_000, 60_000), "image-too-large"),
        (bomb(2**31 - 1, 2**31 - 1), "image-too-large"),
        (bomb(8000, 7000), "broken-image"),
        (png((2000, 3)), "extreme-sides"),
        (png((1, 200)), "extreme-sides"),
        (None, "no-image"),
        ("", "no-image"),
        ([], "no-image"),
        ([PLAIN] * 9, "too-many-images"),
        (7, "not-an-image"),
        ([[PLAIN]], "not-an-image"),
        ({"url": "http://127.0.0.1/a.png"}, "not-an-image"),
        ("http://127.0.0.1/a.png", "no-folder"),
        ("a.png", "no-folder"),
        ("data:image/png;base64,####", "broken-image"),
        ("data:text/plain,hello", "broken-image"),
        (b"\x89PNG" + b"x" * 3000, "image-too-large"),
        ("data:image/png;base64," + "A" * 9000, "image-too-large"),
    ],
)
def test_a_bad_image_is_refused_with_its_reason(value: Any, reason: str):
    with pytest.raises(InvalidImage) as error:
        read(value, max_bytes=2000)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "outside-folder"),
        ("sub/../../secret.png", "outside-folder"),
        ("/etc/passwd", "outside-folder"),
        ("file:///etc/passwd", "outside-folder"),
        ("http://127.0.0.1/a.png", "outside-folder"),
        ("link.png", "outside-folder"),
        ("folder-link/secret.png", "outside-folder"),
        ("nothing.png", "missing-image"),
        ("sub", "missing-image"),
        ("a\0b.png", "outside-folder"),
        ("x" * 5000, "missing-image"),
        ("large.png", "image-too-large"),
        ("*.png", "missing-image"),
        ("\ud800.png", "outside-folder"),
        ("loop.png", "outside-folder"),
    ],
)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str, reason: str):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PLAIN)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "folder-link").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "large.png").write_bytes(PLAIN + b"\0" * 5000)
    with pytest.raises(InvalidImage) as error:
        read(path, folder=str(folder), max_bytes=2000)
    assert error.value.reason == reason


def test_plain_files_stay_as_they_are():
    for image in (png(), jpeg((9, 9)), png(mode="L"), jpeg((9, 9), "L")):
        assert read(image) == (image,)


def test_transparency_becomes_white_and_palettes_become_colours():
    for image in (png(mode="RGBA", colour=(255, 0, 0, 0)), png(mode="LA", colour=(0, 0))):
        (found,) = read(image)
        assert Image.open(io.BytesIO(found)).mode == "RGB"
        assert Image.open(io.BytesIO(found)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    file = io.BytesIO()
    palette.save(file, "GIF")
    (found,) = read(file.getvalue())
    assert Image.open(io.BytesIO(found)).convert("RGB").getpixel((0, 0)) == (10, 200, 30)


def test_sixteen_bits_of_grey_become_eight():
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(file, "PNG")
    (found,) = read(file.getvalue())
    assert Image.open(io.BytesIO(found)).convert("RGB").getpixel((0, 0)) == (156, 156, 156)


def test_a_turned_photograph_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    (found,) = read(jpeg((30, 10), exif=exif))
    assert size_of(found) == (10, 30)


def test_a_large_image_is_scaled_down_and_counted():
    reader = ImageReader(Images(max_pixels=28 * 28 * 4))
    small, large = reader.read([png((50, 50)), png((560, 140))])
    assert size_of(small) == (50, 50)
    assert size_of(large) == (112, 28)
    assert reader.scaled_down == 1


def test_the_key_of_a_folder_changes_with_its_files(tmp_path: Path):
    settings = Images(folder=str(tmp_path))
    (tmp_path / "a.png").write_bytes(PLAIN)
    first = folder_state(settings)
    assert folder_state(settings) == first
    (tmp_path / "a.png").write_bytes(png((9, 9)))
    second = folder_state(settings)
    assert first
    assert second
    assert first.digest != second.digest
    assert folder_state(Images()) is None


def test_rows_of_json_hold_paths(tmp_path: Path):
    row = json.loads('{"image": "a.png"}')
    (tmp_path / "a.png").write_bytes(PLAIN)
    assert read(row["image"], folder=str(tmp_path)) == (PLAIN,)


def test_no_escaped_path_leads_out_of_a_remote_folder():
    files = fsspec.filesystem("memory")
    files.pipe({"/pictures/a.png": PLAIN, "/secret.png": PLAIN})
    assert read("a.png", folder="memory://pictures") == (PLAIN,)
    for path in ("%2e%2e/secret.png", "a.png?x=../secret.png", "..\\secret.png", "../secret.png"):
        with pytest.raises(InvalidImage, match="no path within"):
            read(path, folder="memory://pictures")


def test_a_folder_that_cannot_be_read_ends_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A broken connection is no bad row."""
    (tmp_path / "a.png").write_bytes(PLAIN)

    def lost(*_: Any) -> bytes:
        raise ConnectionResetError("lost")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", lost)
    with pytest.raises(ProblemsRefused, match="cannot be read"):
        read("a.png", folder=str(tmp_path))
