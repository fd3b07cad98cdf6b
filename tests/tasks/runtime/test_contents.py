"""What an object holds, as somebody else's storage tells it."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.runtime.contents import Contents, FileContent

ONE = FileContent(bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())


def test_a_folder_is_its_names_and_contents(tmp_path: Path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(b"abc")
    contents = Contents.of(tmp_path / "a")
    assert contents.files == {"/deep/file": ONE}
    assert contents.digest == hashlib.sha256(f"/deep/file:{ONE.sha256}\n".encode()).hexdigest()
    assert (contents.is_folder, contents.bytes) == (True, 3)
    assert contents.has_sizes(tmp_path / "a")
    (tmp_path / "a" / "deep" / "file").write_bytes(b"ab")
    assert not contents.has_sizes(tmp_path / "a")


def test_a_file_is_its_content(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    contents = Contents.of(tmp_path / "file")
    assert (contents.files, contents.digest, contents.is_folder) == ({"": ONE}, ONE.sha256, False)
    assert contents.has_sizes(tmp_path / "file")
    assert not contents.has_sizes(tmp_path / "other")


def test_an_empty_folder_is_no_object(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Contents.of(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a", "/", "//a", "/a/", "/../a", "/a/../../b", "/.", "..", "/a/./b", "a/b", "/a\0"],
)
def test_names_that_lead_elsewhere_are_refused(name: str):
    with pytest.raises(ValidationError, match="is no name of a file within an object"):
        Contents(files={name: ONE})


@pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "0" * 63])
def test_a_digest_is_hexadecimal(digest: str):
    with pytest.raises(ValidationError):
        FileContent(bytes=1, sha256=digest)


def test_a_file_holds_no_other_files_and_nothing_is_no_object():
    with pytest.raises(ValidationError, match="a file holds no other files"):
        Contents(files={"": ONE, "/a": ONE})
    with pytest.raises(ValidationError):
        Contents(files={})
