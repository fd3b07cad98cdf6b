"""A run of DTO with the scripted model, in a process that stands for a machine of its own.

    python -m tests.flows.host HOLD_AFTER SETTING=VALUE …

Prints `held` once it has sampled HOLD_AFTER completions, and goes on when a line comes in. Prints its figures as JSON
at the end.
"""

import json
import sys

from conf.dto import Dto
from conf.load import load
from flows.dto import run_dto
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from tests.flows.test_dto_stack import SMALL
from tests.flows.world import ScriptedRun, speak


def main(hold_after: int, *changes: str) -> None:
    def script(model: Checkpoint, request: Request, number: int) -> Completion:
        if number == hold_after:
            print("held", flush=True)
            sys.stdin.readline()
        return speak(model, request, number)

    run = ScriptedRun("dto", load(Dto, "tiny", (*SMALL, *changes)), run_dto, lambda: ScriptedEngine(script))
    figures = {
        "completions": run.completions,
        "made": run.redone,
        "steps": len(run.report["ledger"]),
        "models": run.report["models"],
        "warnings": run.report["warnings"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
