import hashlib
from pathlib import Path

import pytest

from models import files
from models.files import file_digest


def test_a_large_file_is_read_once_as_long_as_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "LARGE", 10)
    read: list[Path] = []
    digest = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: read.append(path) or digest(path))
    small, large, moved = (tmp_path / name for name in ("small", "large", "moved"))
    small.write_text("123456789")
    large.write_text("1234567890")
    for _ in range(2):
        assert file_digest(small) == hashlib.sha256(b"123456789").hexdigest()
        assert file_digest(large) == hashlib.sha256(b"1234567890").hexdigest()
    large.rename(moved)
    assert file_digest(moved) == hashlib.sha256(b"1234567890").hexdigest()
    assert read == [small, large, small]
    moved.write_text("1234567890!")
    assert file_digest(moved) == hashlib.sha256(b"1234567890!").hexdigest()
    large.write_text("another file")
    assert file_digest(large) == hashlib.sha256(b"another file").hexdigest()
