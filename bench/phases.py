"""Whether a run of Long⊗Short survives SIGKILL in each of its phases. Prints what it saw, ends with an error if not.

    python -m bench.phases

The micro preset is started again and again, and its whole process group killed in the midst of one phase after the
other; the last run is left alone. Then an uninterrupted run is made on a copy of the completions that are stored by
then: it must find every one that it wants, take as many steps, and come to the same rows and weights, bit by bit, as a
CPU does.
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
    "talk: ": "",
}
"""How the progress of each begins, and what shows that it is under way: the first step is done. Where nothing is named,
it is a completion that was not stored before."""
DEADLINE = 600
"""Seconds for one start to get to its phase, or to the end."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        for phase in PHASES:
            kept = kill_in(phase, killed)
            print(f"killed in {phase.strip(': ')}: {kept} completions stored", flush=True)
        started = time.monotonic()
        finish(killed)
        print(f"the rest: {time.monotonic() - started:.0f} s", flush=True)
        whole.mkdir()
        shutil.copy(killed / "rollouts.sqlite", whole / "rollouts.sqlite")
        finish(whole)
        compare(killed, whole)


def finish(root: Path) -> None:
    """Runs to the end."""
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
    """Completions that were stored when it was killed."""
    log, deadline = root.with_name(f"killed-in-{phase.split(':')[0]}.log"), time.monotonic() + DEADLINE
    process, before = run(root, log), -1
    try:
        while process.poll() is None and time.monotonic() < deadline:
            told = [line.split(phase)[1] for line in log.read_text(errors="replace").splitlines() if phase in line]
            if told and before < 0:
                before = len(stored(root))
            if any(PHASES[phase] in line for line in told) if PHASES[phase] else len(stored(root)) > before >= 0:
                break
            time.sleep(0.02)
        else:
            raise SystemExit(f"{phase} was not met:\n{log.read_text()[-2000:]}")
    finally:
        kill(process)
    time.sleep(1)  # its guards end what it had started
    return len(stored(root))


def kill(process: subprocess.Popen[bytes]) -> None:
    """It is a group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stored(root: Path) -> set[tuple[Any, ...]]:
    with suppress(sqlite3.OperationalError), closing(open_store(root)) as database:
        return set(database.execute("SELECT identity, sample, token_ids FROM completions"))
    return set()


def open_store(root: Path) -> sqlite3.Connection:
    """For reading; where there is none yet, none is made."""
    return sqlite3.connect(f"file:{root / 'rollouts.sqlite'}?mode=ro", uri=True)


def compare(killed: Path, whole: Path) -> None:
    reports = [json.loads((root / "latest" / "report.json").read_text()) for root in (killed, whole)]
    rows, again = stored(killed), stored(whole)
    outcomes = [[outcome(line) for line in report["ledger"]] for report in reports]
    steps = [steps_of(root) for root in (killed, whole)]
    print(f"stored: {len(rows)}; drawn anew by the uninterrupted run: {len(again - rows)}")
    print(f"optimizer steps logged: {steps[0]} and {steps[1]}; equal results: {outcomes[0] == outcomes[1]}")
    if again != rows or outcomes[0] != outcomes[1] or steps[0] != steps[1]:
        different = [(one, other) for one, other in zip(*outcomes, strict=False) if one != other]
        raise SystemExit(f"a killed run and an uninterrupted one differ: {different}")


def outcome(line: dict[str, Any]) -> tuple[Any, ...]:
    """Of a couple, which names its models by where they are, all but the digest."""
    digest = line["digest"] if line["stage"] != "pair-models" else ""
    return line["stage"], line["rows_in"], line["rows_out"], digest


def steps_of(root: Path) -> dict[str, int]:
    """Of each training, by its kind and the step's key."""
    files = [path for path in root.glob("long-short-*/*.jsonl") if path.stem.startswith(("sft-", "grpo-"))]
    return {path.stem: len(path.read_text().splitlines()) for path in files}


if __name__ == "__main__":
    main()
