"""Kills a run of Long⊗Short in each of its phases. Prints what happened; ends with an error if a check fails.

    python -m bench.phases

The micro preset is started repeatedly, and its process group is killed once in each phase; the last run completes. Then
an uninterrupted run uses a copy of the completions stored by then: it must find all that it needs, take as many steps,
and produce the same rows and weights, bit by bit on a CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

PHASES = {
    "sample: ": "",
    "value thoughts: ": "",
    "sft: ": " steps",
    "grpo-long: ": "2 steps",
    "grpo-short: ": "2 steps",
    "dialogues: ": "",
}
"""The prefix of each phase's progress lines, and the text that shows its first step is done. Where the text is empty, a
new stored completion shows it."""
DEADLINE = 600
"""Seconds for one run to reach its phase, or to complete."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed, complete = Path(folder) / "killed", Path(folder) / "complete"
        for phase in PHASES:
            stored_count = kill_in(phase, killed)
            print(f"killed in {phase.strip(': ')}: {stored_count} completions stored", flush=True)
        started = time.monotonic()
        finish(killed)
        print(f"the rest: {time.monotonic() - started:.0f} s", flush=True)
        complete.mkdir()
        shutil.copy(killed / "rollouts.sqlite", complete / "rollouts.sqlite")
        finish(complete)
        compare(killed, complete)


def finish(root: Path) -> None:
    """Runs to completion."""
    log = root.with_name(f"{root.name}-end.log")
    process = run(root, log)
    try:
        code = process.wait(DEADLINE)
    finally:
        kill(process)
    if code:
        raise SystemExit(f"the run ended with {code}:\n{log.read_text()[-2000:]}")


def run(root: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows", "run", "long-short", "--preset", "micro", "--set", f"storage.root={root}"]
    environment = os.environ | {"PREFECT_HOME": str(root.with_name("prefect"))}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)


def kill_in(phase: str, root: Path) -> int:
    """Number of completions stored when the run was killed."""
    log, deadline = root.with_name(f"killed-in-{phase.split(':')[0]}.log"), time.monotonic() + DEADLINE
    process, before = run(root, log), -1
    try:
        while process.poll() is None and time.monotonic() < deadline:
            lines = [line.split(phase)[1] for line in log.read_text(errors="replace").splitlines() if phase in line]
            if lines and before < 0:
                before = len(stored(root))
            if any(PHASES[phase] in line for line in lines) if PHASES[phase] else len(stored(root)) > before >= 0:
                break
            time.sleep(0.02)
        else:
            raise SystemExit(f"{phase} was not reached:\n{log.read_text()[-2000:]}")
    finally:
        kill(process)
    time.sleep(1)  # its guards end its child processes
    return len(stored(root))


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stored(root: Path) -> set[tuple[Any, ...]]:
    with suppress(sqlite3.OperationalError), closing(open_store(root)) as database:
        return set(database.execute("SELECT identity, sample, token_ids FROM completions"))
    return set()


def open_store(root: Path) -> sqlite3.Connection:
    """Opens the store read-only, without creating it."""
    return sqlite3.connect(f"file:{root / 'rollouts.sqlite'}?mode=ro", uri=True)


def compare(killed: Path, complete: Path) -> None:
    reports = [json.loads((root / "latest" / "report.json").read_text()) for root in (killed, complete)]
    rows, again = stored(killed), stored(complete)
    outcomes = [[outcome(line) for line in report["ledger"]] for report in reports]
    steps = [steps_of(root) for root in (killed, complete)]
    print(f"stored: {len(rows)}; sampled by the uninterrupted run: {len(again - rows)}")
    print(f"optimizer steps logged: {steps[0]} and {steps[1]}; equal results: {outcomes[0] == outcomes[1]}")
    if again != rows or outcomes[0] != outcomes[1] or steps[0] != steps[1]:
        different = [(one, other) for one, other in zip(*outcomes, strict=False) if one != other]
        raise SystemExit(f"a killed run and an uninterrupted one differ: {different}")


def outcome(line: dict[str, Any]) -> tuple[Any, ...]:
    """A ledger line's result. For a model pair, which contains paths, without the digest."""
    digest = line["digest"] if line["stage"] != "pair-models" else ""
    return line["stage"], line["rows_in"], line["rows_out"], digest


def steps_of(root: Path) -> dict[str, int]:
    """Number of logged lines of each training, by kind and step key."""
    files = [path for path in root.glob("long-short-*/*.jsonl") if path.stem.startswith(("sft-", "grpo-"))]
    return {path.stem: len(path.read_text().splitlines()) for path in files}


if __name__ == "__main__":
    main()
