"""A run of the rollout executor that kills its own process group at a line that the caller chose.

    python -m tests.models.killed STORE_URL MODEL_FOLDER LOG LINES

LINES: number of executed lines of executor, scheduler and store before the kill; 0: no kill. LOG gets a line per
request sent: prompt, first sample, number of samples. A run that completes prints its crossings as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference import rollout_executor, rollout_store, scheduler
from models.inference.engine import Completion
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, PendingRequest, SamplingJob
from models.inference.scripted_engine import ScriptedEngine
from reasoning.sampling_plans import ForwardScanPlan
from reasoning.token_ids import TokenIds

TRACES, PREFIXES, K = 60, 10, 8
SAMPLING = Sampling(samples=K)
WATCHED = {scheduler.__file__, rollout_executor.__file__, rollout_store.__file__}


def job(trace: int) -> SamplingJob:
    plan = ForwardScanPlan(PREFIXES, K, 0.5)
    return SamplingJob(
        plan, lambda index: TokenIds((trace, index)), SAMPLING, lambda group: [bool(c.token_ids[0]) for c in group], 2
    )


def die_after(lines: int) -> None:
    remaining = iter(range(lines))

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line" and next(remaining, None) is None:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def main(url: str, model: str, log: Path, lines: int) -> None:
    rng = random.SystemRandom()
    engine = ScriptedEngine(lambda *_: Completion(TokenIds((int(rng.random() < 0.35), rng.getrandbits(31))), True))

    class Logged(EngineScheduler):
        def submit(self, request_id: int, pending: PendingRequest) -> None:
            first = pending.sample_range.first + len(pending.completions)
            with log.open("a") as file:
                file.write(json.dumps([pending.request.prompt_ids.tolist(), first, pending.missing]) + "\n")
            super().submit(request_id, pending)

    run = RolloutExecutor(RolloutStore(url), [Logged(engine, Checkpoint.open(Path(model)))], Purpose.PROBE, 0)
    jobs = [job(trace) for trace in range(TRACES)]
    if lines:
        die_after(lines)
    list(run.run(jobs))
    print(json.dumps([one.plan.crossing for one in jobs]))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
