"""Local folder of one run: settings, report, logs, scratch folders, lists of skipped rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.base import Settings
from conf.engine import Storage
from models.files import atomic_write
from reasoning.records import InvalidRow, SkippedRow

REPORT_FILE = "report.json"


class RunDirectory:
    """`path`: folder of this run. `root`: storage of all runs, may be remote. `local_root`: its counterpart on this
    machine."""

    def __init__(self, name: str, storage: Storage, is_local: bool):
        self.is_local = is_local
        self.local_root = local_root(storage, is_local)
        self.root = str(self.local_root) if is_local else storage.root
        self.path = _new_folder(self.local_root, name)

    @property
    def report(self) -> Path:
        return self.path / REPORT_FILE

    def save_settings(self, settings: Settings) -> None:
        (self.path / "config.json").write_text(settings.model_dump_json(indent=2))

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
        parent = self.local_root / "work" / step_key
        own = parent / owner.rpartition("/")[2]
        if not own.exists():
            parent.mkdir(parents=True, exist_ok=True)
            left = sorted(parent.iterdir(), key=lambda folder: folder.stat().st_mtime)
            left[-1].rename(own) if left else own.mkdir()
        return own

    def save_skipped(self, step_key: str, rows: Sequence[SkippedRow | InvalidRow]) -> Path:
        """Writes `set-aside/STEP_KEY.jsonl` and returns its path."""
        path = self.local_root / "set-aside" / f"{step_key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(row.model_dump_json() + "\n" for row in rows))
        return path


def local_root(storage: Storage, is_local: bool) -> Path:
    """The folder for all that a run keeps on this machine: `storage.root`, or `runs` if that is a URL."""
    return Path(storage.root if is_local else "runs").resolve()


def rollout_store_url(storage: Storage, root: Path) -> str:
    """URL of the rollout store; by default an SQLite file in `root`, the `local_root`."""
    return storage.rollout_store or f"sqlite:///{root / 'rollouts.sqlite'}"


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
