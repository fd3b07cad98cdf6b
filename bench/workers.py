"""What more workers are worth to a step, with scripted latencies in the place of a model: processes of this machine,
and nodes of a local Ray cluster, which are processes too.

    python -m bench.workers                  # writes bench/results/workers.json

Each worker has a server of its own with 32 slots, which takes 0.5 s for a reply, a half more or less. The step samples
one completion for each problem, in shards of 64, and checks its answer.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.null_engine import SECONDS, SLOTS, NullServers
from bench.null_server import TOKENS
from bench.rollouts import machine
from bench.scale import plainly
from conf.engine import Engine as EngineSettings
from conf.engine import Storage
from conf.problems import Stories
from conf.sampling import Sampling
from conf.workers import Workers
from reasoning.stories import Split
from tasks.runtime.context import RunContext
from tasks.steps.problems import draw_problems
from tasks.steps.sampling import sample_traces
from tests.services import RayCluster

RESULT = Path(__file__).parent / "results" / "workers.json"
ROUNDS = 3
PROBLEMS_EACH = 1024
"""Problems for each worker: about 16 seconds of work."""
SAMPLING = Sampling(samples=1, max_tokens=TOKENS)


@contextmanager
def run_with(folder: Path, workers: Workers) -> Iterator[RunContext]:
    engine = EngineSettings(max_num_seqs=SLOTS, workers=workers)
    storage = Storage(root=str(folder))
    with RunContext("bench", storage, engine, make_engine=NullServers, run_step=plainly) as ctx:
        yield ctx


def rates(folder: Path, workers: Workers) -> list[float]:
    """Generated tokens a second, for each round. The workers are there before the first."""
    assert workers.count
    with run_with(folder, workers) as ctx:
        model = ctx.resources.model("tiny")

        def rate(problems: int, seed: int) -> float:
            drawn = draw_problems(ctx, source=Stories(count=problems), split=Split.TRAIN, seed=seed)
            began = time.perf_counter()
            made = sample_traces(ctx, model=model, problems=drawn, sampling=SAMPLING, seed=seed)
            assert made.count
            assert made.count.generated_tokens == problems * TOKENS
            return problems * TOKENS / (time.perf_counter() - began)

        rate(64 * 4 * workers.count, 0)
        return [rate(PROBLEMS_EACH * workers.count, seed) for seed in range(1, ROUNDS + 1)]


def main() -> None:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cluster = RayCluster(folder, {})
        cluster.add_node()
        try:
            for kind in ("ray", "processes"):
                for count in (1, 2):
                    workers = Workers(kind=kind, count=count, ray_address=cluster.address)
                    found[f"{kind} {count}"] = rates(folder / f"{kind}-{count}", workers)
                    print(kind, count, [round(rate) for rate in found[f"{kind} {count}"]], flush=True)
        finally:
            cluster.close()
    times = {kind: median(found[f"{kind} 2"]) / median(found[f"{kind} 1"]) for kind in ("ray", "processes")}
    result = {"tokens_per_second": found, "two_of_one": times, "ideal_of_one": SLOTS * TOKENS / SECONDS} | machine()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(", ".join(f"{kind}: {value:.2f} ×" for kind, value in times.items()))


if __name__ == "__main__":
    main()
