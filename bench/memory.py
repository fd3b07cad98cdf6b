"""Peak memory of the rollout executor's process with 1,000 traces and with 10,000.

    python -m bench.memory                    # writes bench/results/memory.json

Uses the scripted engine and traces that are generated on demand, so that only the engine's own memory grows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.rollouts import machine
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from models.inference.scripted_engine import ScriptedEngine
from reasoning.sampling_plans import ForwardScanPlan
from reasoning.token_ids import TokenIds

RESULT = Path(__file__).parent / "results" / "memory.json"
PREFIXES, TOKENS, K = 16, 60, 8


def jobs(traces: int) -> Iterator[SamplingJob]:
    for trace in range(traces):
        ids = TokenIds((trace * 7919 + n) % 640 for n in range(PREFIXES * TOKENS))
        yield SamplingJob(
            ForwardScanPlan(PREFIXES, K, 0.5),
            lambda index, ids=ids: ids[: (index + 1) * TOKENS],
            Sampling(samples=K),
            lambda completions: [completion.token_ids[0] == 1 for completion in completions],
            len(ids),
        )


def right_late(_: Checkpoint, request: Request, number: int) -> Completion:
    """Longer prefixes are right more often."""
    return Completion(TokenIds((int(number % PREFIXES < len(request.prompt_ids) // TOKENS - 3), 2)), True)


def run(traces: int) -> int:
    """Peak resident set size of the process, KiB."""
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(f"sqlite:///{folder}/store.sqlite")
        rollouts = RolloutExecutor(
            store, [EngineScheduler(ScriptedEngine(right_late), Checkpoint.open(TINY_MODEL))], Purpose.PROBE, 0
        )
        for _ in rollouts.run(jobs(traces)):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    if len(sys.argv) > 1:
        print(run(int(sys.argv[1])))
        return
    sizes = {}
    for traces in (1_000, 10_000):
        command = [sys.executable, "-m", "bench.memory", str(traces)]
        sizes[traces] = int(subprocess.check_output(command)) / 1024
        print(f"{traces} traces: {sizes[traces]:.0f} MiB", flush=True)
    result = {"peak_mib": sizes, "growth": sizes[10_000] / sizes[1_000]} | machine()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
