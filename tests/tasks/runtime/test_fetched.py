"""Copies of remote objects: one fetch for several processes, a bound, and none removed while it is used."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime.fetched import LOCKS, FetchedFiles


def fetch(content: bytes, calls: list[Path]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        calls.append(path)
        path.write_bytes(content)

    return write


def ages(folder: Path, **days: float) -> None:
    for name, age in days.items():
        os.utime(folder / LOCKS / name, times=(1e9 - age, 1e9 - age))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCKS}


def test_what_is_here_is_not_fetched_again(tmp_path: Path):
    calls: list[Path] = []
    for _ in range(2):
        files = FetchedFiles(tmp_path, 100)
        for _ in range(2):
            assert files.path("a", 3, fetch(b"abc", calls), Path.exists).read_bytes() == b"abc"
        files.close()
    assert len(calls) == 1


def test_what_was_used_last_the_longest_ago_makes_room(tmp_path: Path):
    files = FetchedFiles(tmp_path, 10)
    for name in "abc":
        files.path(name, 3, fetch(b"123", []), Path.exists)
    files.close()
    ages(tmp_path, a=1, b=3, c=2)
    files.path("d", 4, fetch(b"1234", []), Path.exists)  # 9 + 4 > 10, 6 + 4 = 10: the oldest goes
    assert names(tmp_path) == {"a", "c", "d"}


def test_folders_count_with_all_their_files(tmp_path: Path):
    def write(path: Path) -> None:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "one").write_bytes(b"12345")
        (path / "two").write_bytes(b"123")

    files = FetchedFiles(tmp_path, 10)
    files.path("a", 8, write, Path.exists)
    files.close()
    files.path("b", 2, fetch(b"12", []), Path.exists)
    assert names(tmp_path) == {"a", "b"}
    files.close()
    ages(tmp_path, a=1, b=2)
    files.path("c", 3, fetch(b"123", []), Path.exists)  # b alone is not enough
    assert names(tmp_path) == {"c"}


def test_those_in_use_stay_even_beyond_the_bound(tmp_path: Path):
    used, others = FetchedFiles(tmp_path, 10), FetchedFiles(tmp_path, 10)
    used.path("a", 8, fetch(b"12345678", []), Path.exists)
    others.path("b", 8, fetch(b"12345678", []), Path.exists)
    assert names(tmp_path) == {"a", "b"}
    others.close()
    used.path("c", 1, fetch(b"1", []), Path.exists)
    assert names(tmp_path) == {"a", "c"}


def test_an_interrupted_fetch_leaves_nothing(tmp_path: Path):
    def fails(path: Path) -> None:
        path.write_bytes(b"ab")
        raise ConnectionError("away")

    files = FetchedFiles(tmp_path, 100)
    with pytest.raises(ConnectionError):
        files.path("a", 3, fails, Path.exists)
    assert names(tmp_path) == set()
    assert files.path("a", 3, fetch(b"abc", []), Path.exists).read_bytes() == b"abc"


def test_a_fetch_that_failed_is_tried_again_while_somebody_keeps_its_error(tmp_path: Path):
    """As clients of storages and Prefect's states do."""

    def fails(path: Path) -> None:
        raise ConnectionError("away")

    kept = []
    for _ in range(2):
        try:
            FetchedFiles(tmp_path, 100).path("a", 3, fails, Path.exists)
        except ConnectionError as error:
            kept.append(error)
    assert FetchedFiles(tmp_path, 100).path("a", 3, fetch(b"abc", []), Path.exists).read_bytes() == b"abc"
    assert len(kept) == 2


def test_what_is_not_whole_is_fetched_anew(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "half").touch()
    files = FetchedFiles(tmp_path, 100)
    assert files.path("a", 3, fetch(b"abc", []), Path.is_file).read_bytes() == b"abc"


def test_an_interrupted_removal_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(path: Path) -> None:
        path.mkdir()
        for name in "12345":
            (path / name).touch()
        (path / "6").write_bytes(b"123456")

    files = FetchedFiles(tmp_path, 10)
    files.path("a", 6, write, Path.exists)
    files.close()

    def killed(path: Path, **_: Any) -> None:
        (path / "1").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            files.path("b", 9, fetch(b"123456789", []), Path.exists)
    assert len(list(files.path("a", 6, write, Path.exists).iterdir())) == 6


def test_what_a_killed_fetch_left_is_fetched_anew_or_makes_room(tmp_path: Path):
    for name in (".a", ".b"):
        (tmp_path / name).write_bytes(b"half of it")
    files = FetchedFiles(tmp_path, 10)
    assert files.path("a", 3, fetch(b"abc", []), Path.exists).read_bytes() == b"abc"
    assert names(tmp_path) == {"a"}


RACER = """
import sys, time
from pathlib import Path
from tasks.runtime.fetched import FetchedFiles
folder = Path(sys.argv[1])
def fetch(path):
    with (folder.parent / "calls").open("a") as calls:
        calls.write(path.name + "\\n")
    path.mkdir()
    for number in range(50):
        (path / str(number)).write_bytes(b"x" * 1000)
print("ready", flush=True)
sys.stdin.readline()
files = FetchedFiles(folder, 120_000)
for turn in range(12):
    copy = files.path(str(turn % 4), 50_000, fetch, Path.exists)
    assert sorted(part.stat().st_size for part in copy.iterdir()) == [1000] * 50
    files.close()
"""


def race(folder: Path, code: str) -> list[int]:
    """Starts four processes, lets them go at one time, and returns their exit codes."""
    command = [sys.executable, "-c", code, str(folder)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for racer in racers:
        assert racer.stdout
        racer.stdout.readline()
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
    return [racer.returncode for racer in racers]


def test_processes_that_fetch_at_one_time_never_see_half_a_copy(tmp_path: Path):
    """Two of four copies fit: they make room for each other all the time."""
    assert race(tmp_path / "fetched", RACER) == [0] * 4


def test_a_copy_that_all_want_is_fetched_once(tmp_path: Path):
    assert race(tmp_path / "fetched", RACER.replace("range(12)", "range(1)")) == [0] * 4
    assert (tmp_path / "calls").read_text() == ".0\n"
