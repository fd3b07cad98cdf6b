"""Copies of remote objects on this machine, within a bound. Processes that need one at the same time fetch it once.

It knows folders, locks and sizes. It must not know what is fetched, nor from where.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCKS = "locks"
PARTIAL = "."
"""First character of the name of a copy that is not fetched to its end."""


class FetchedFiles:
    """A folder of copies by name. A copy that any process uses stays; of the others, those used last the longest ago
    make room. The folder must be on a disk of this machine. Its locks are the system's: they end with their process."""

    def __init__(self, folder: Path, max_bytes: float):
        """`max_bytes`: size of all copies together; exceeded if the new one and those in use need more."""
        self._folder, self._max_bytes = folder, max_bytes
        self._in_use: dict[str, IO[bytes]] = {}

    def path(self, name: str, size: int, fetch: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
        """The copy `name`, which stays until `close`.

        `fetch` writes `size` bytes to the path that it is called with; it is not called if there is a copy that
        `is_whole`. What it raises is raised, and nothing is kept.
        """
        if held := self.held(name):
            return held
        copy = self._folder / name
        lock = self._open_lock(name)
        try:
            while not self._is_held(lock, copy, is_whole):
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not is_whole(copy):  # else another process was faster
                    self._make_room(size)
                    self._fetch(copy, fetch)
        except BaseException:
            lock.close()  # an exception that somebody keeps would keep the lock as well
            raise
        os.utime(lock.fileno())
        self._in_use[name] = lock
        return copy

    def held(self, name: str) -> Path | None:
        """The copy `name`, if this has it in use."""
        return self._folder / name if name in self._in_use else None

    def _is_held(self, lock: IO[bytes], copy: Path, is_whole: Callable[[Path], bool]) -> bool:
        """Takes the lock for use. False if there is no whole copy: it is not fetched yet, or was removed meanwhile."""
        fcntl.flock(lock, fcntl.LOCK_SH)
        return is_whole(copy)

    def _open_lock(self, name: str) -> IO[bytes]:
        (self._folder / LOCKS).mkdir(parents=True, exist_ok=True)
        return (self._folder / LOCKS / name).open("a+b")

    def _fetch(self, copy: Path, fetch: Callable[[Path], None]) -> None:
        partial = copy.with_name(PARTIAL + copy.name)
        _remove(partial)  # that of a process which was killed
        _remove(copy)  # not whole
        try:
            fetch(partial)
            partial.rename(copy)
        finally:
            _remove(partial)

    def _make_room(self, size: int) -> None:
        entries = [entry for entry in self._folder.iterdir() if entry.name != LOCKS]
        sizes = {entry: _size(entry) for entry in entries}
        free = self._max_bytes - sum(sizes.values()) - size
        for entry in sorted(sizes, key=self._last_used):
            if free < 0 and self._remove_unused(entry):
                free += sizes[entry]

    def _last_used(self, entry: Path) -> float:
        lock = self._folder / LOCKS / entry.name.removeprefix(PARTIAL)
        return lock.stat().st_mtime if lock.exists() else 0.0

    def _remove_unused(self, entry: Path) -> bool:
        """Removes a copy. False if a process fetches or uses it."""
        with self._open_lock(entry.name.removeprefix(PARTIAL)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            partial = entry.with_name(PARTIAL + entry.name.removeprefix(PARTIAL))
            if entry != partial:  # a removal that is interrupted must not leave half a copy under its name
                _remove(partial)
                entry.rename(partial)
            _remove(partial)
        return True

    def close(self) -> None:
        """Gives all copies back. They stay until their room is needed."""
        for lock in self._in_use.values():
            lock.close()
        self._in_use.clear()


def _size(path: Path) -> int:
    """Of a file, or of all files of a folder; 0 if another process removes it meanwhile."""
    with suppress(FileNotFoundError):
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
