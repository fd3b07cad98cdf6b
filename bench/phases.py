"""Whether a run of Long⊗Short survives SIGKILL in each of its phases. Prints what it saw, ends with an error if not.

    python -m bench.phases

The micro preset is started again and again, and its whole process group killed in one phase after the other; the last
run is left alone. Then an uninterrupted run is made on the samples that were stored: it must find every one that it
wants, want every one that is there, take as many steps, and end with the same weights.
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
from pathlib import Path
from typing import Any

PHASES = ("sample: ", "value thoughts: ", "sft: ", "grpo-long: ", "grpo-short: ", "talk: ")
"""How the progress of each begins."""
WITHIN = {"grpo-long: ": "1/", "grpo-short: ": "1/"}
"""What shows that a phase is under way, where its name alone does not: the first step of two is done."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        for phase in PHASES:
            kept = kill_in(phase, killed)
            print(f"killed in {phase.strip(': ')}: {kept} completions stored", flush=True)
        started = time.monotonic()
        run(killed, Path(folder) / "log").wait()
        print(f"the rest: {time.monotonic() - started:.0f} s")
        whole.mkdir()
        shutil.copy(killed / "rollouts.sqlite", whole / "rollouts.sqlite")
        run(whole, Path(folder) / "log").wait()
        compare(killed, whole)


def run(root: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows", "run", "long-short", "--preset", "micro", "--set", f"storage.root={root}"]
    environment = os.environ | {"PREFECT_HOME": str(root.with_name("prefect"))}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)


def kill_in(phase: str, root: Path) -> int:
    """Completions that were stored when it was killed."""
    log = root.with_name("log")
    process = run(root, log)
    while process.poll() is None:
        lines = [line.split(phase)[1] for line in log.read_text(errors="replace").splitlines() if phase in line]
        if any(WITHIN.get(phase, "") in line for line in lines):
            break
        time.sleep(0.02)
    else:
        raise SystemExit(f"the run ended before {phase}:\n{log.read_text()[-2000:]}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its guards end what it had started
    return len(stored(root))


def stored(root: Path) -> set[tuple[Any, ...]]:
    with sqlite3.connect(root / "rollouts.sqlite") as database:
        return set(database.execute("SELECT identity, sample, token_ids FROM completions"))


def compare(killed: Path, whole: Path) -> None:
    reports = [json.loads((root / "latest" / "report.json").read_text()) for root in (killed, whole)]
    rows, again = stored(killed), stored(whole)
    outcomes = [
        [(line["stage"], line["rows_in"], line["rows_out"], line["digest"]) for line in report["ledger"]]
        for report in reports
    ]
    steps = [steps_of(root) for root in (killed, whole)]
    wanted = sum(line["reused_completions"] for line in reports[1]["ledger"])
    print(f"stored: {len(rows)}; drawn anew by the uninterrupted run: {len(again - rows)}; it read {wanted}")
    print(f"optimizer steps logged: {steps[0]} and {steps[1]}; equal results: {outcomes[0] == outcomes[1]}")
    if again != rows or outcomes[0] != outcomes[1] or steps[0] != steps[1]:
        different = [(one, other) for one, other in zip(*outcomes, strict=True) if one != other]
        raise SystemExit(f"a killed run and an uninterrupted one differ: {different}")


def steps_of(root: Path) -> dict[str, int]:
    """Of each training, by its kind and the step's key."""
    files = [path for path in root.glob("long-short-*/*.jsonl") if path.stem.startswith(("sft-", "grpo-"))]
    return {path.stem: len(path.read_text().splitlines()) for path in files}


if __name__ == "__main__":
    main()
