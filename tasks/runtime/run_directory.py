"""Local folder of one run: settings, keys of its steps, report, logs, scratch folders, lists of skipped rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.base import Settings
from conf.engine import Storage
from conf.errors import ReadableError
from models.files import atomic_write
from reasoning.records import InvalidRow, SkippedRow

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
KEYS_FILE = "keys.txt"
RECORDS, SCRATCH, SKIPPED_ROWS, FETCHED = "cache", "work", "set-aside", "fetched"
"""Folders within the storage of all runs: Prefect's records of results, unfinished work, lists of skipped rows, and
copies of remote artifacts."""


class NoRunError(ReadableError):
    """A folder that is not the folder of a run."""


class RunDirectory:
    """`path`: folder of this run. `root`: storage of all runs, may be remote. `local_root`: its counterpart on this
    machine."""

    def __init__(self, name: str, storage: Storage, is_local: bool, folder: Path | None = None):
        """`folder`: that of this run; default: a new one within the storage."""
        self.is_local = is_local
        self.local_root = local_root(storage.root, is_local)
        self.root = str(self.local_root) if is_local else storage.root
        self.path = folder or _new_folder(self.local_root, name)

    @property
    def report(self) -> Path:
        return self.path / REPORT_FILE

    @property
    def page(self) -> Path:
        return self.path / PAGE_FILE

    def save_settings(self, settings: Settings) -> None:
        (self.path / "config.json").write_text(settings.model_dump_json(indent=2))

    def add_key(self, step_key: str) -> None:
        """Adds a line to `keys.txt`: the cache key of a step that has ended or was found in the cache."""
        with (self.path / KEYS_FILE).open("a") as file:
            file.write(f"{step_key}\n")

    def save_report(self, report: dict[str, Any]) -> Path:
        """Writes `report.json` and points the link `latest` to this run. Returns the path of the report."""
        atomic_write(self.report, json.dumps(report, indent=2, allow_nan=False))
        link = self.local_root / f".latest-{self.path.name}"
        link.symlink_to(self.path.name)
        link.rename(self.local_root / "latest")
        return self.report

    def scratch(self, step_key: str, owner: str) -> Path:
        """A folder for unfinished work on a step, from which the step resumes: that of an earlier owner, renamed.

        An earlier owner that was only frozen loses it: its trainer no longer finds its paths.
        """
        parent = self.local_root / SCRATCH / step_key
        own = parent / owner.rpartition("/")[2]
        if not own.exists():
            parent.mkdir(parents=True, exist_ok=True)
            # A trainer that lives on may make its folders anew; the launcher's job file is not among them.
            left = sorted(parent.iterdir(), key=lambda one: ((one / "job.json").exists(), one.stat().st_mtime))
            left[-1].rename(own) if left else own.mkdir()
        return own

    def save_skipped(self, step_key: str, rows: Sequence[SkippedRow | InvalidRow]) -> Path:
        """Writes `set-aside/STEP_KEY.jsonl` and returns its path."""
        path = self.local_root / SKIPPED_ROWS / f"{step_key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(row.model_dump_json() + "\n" for row in rows))
        return path


def local_root(root: str, is_local: bool) -> Path:
    """The folder for all that runs keep on this machine: the storage `root`, or `runs` if that is a URL."""
    return Path(root if is_local else "runs").resolve()


def rollout_store_url(storage: Storage, root: Path) -> str:
    """URL of the rollout store; by default an SQLite file in `root`, the `local_root`."""
    return storage.rollout_store or f"sqlite:///{root / 'rollouts.sqlite'}"


def keys_of_run(folder: Path) -> list[str]:
    """Cache keys of a run's steps, in the order in which they ended. Raises NoRunError."""
    try:
        return list(dict.fromkeys((folder / KEYS_FILE).read_text(errors="replace").split()))
    except FileNotFoundError:
        raise NoRunError(
            f"{folder}: no {KEYS_FILE}; name the folder of a run, such as runs/latest (a run of an earlier version has "
            "none: give its command again, the results come from the cache)"
        ) from None


def _new_folder(root: Path, name: str) -> Path:
    """Creates `<name>-<UTC time>`, with a number when two runs start within one second."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = root / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RuntimeError(f"too many runs named {name} in {root}")
