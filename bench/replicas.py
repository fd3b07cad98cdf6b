"""What more servers are worth to the rollout executor, with scripted latencies in the place of a model.

    python -m bench.replicas                  # writes bench/results/replicas.json

Each server has 32 slots and takes 0.25 s for a reply, a half more or less. Traces of eight prefixes, each of 4,096
token ids with one rollout, are pinned to the server that holds their prefix. One to eight servers in turn.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from bench.null_server import TOKENS, null_server
from bench.rollouts import machine
from conf.engine import Engine
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from reasoning.sampling_plans import FullEstimate
from reasoning.token_ids import TokenIds

RESULT = Path(__file__).parent / "results" / "replicas.json"
SLOTS, SECONDS, PREFIXES, LENGTH, ROUNDS = 32, 0.25, 8, 4096, 3
TRACES_EACH = 160
"""Traces for each server: about ten seconds of work."""
SAMPLING = Sampling(samples=1, max_tokens=TOKENS)


def job(trace: int) -> SamplingJob:
    def prompt(prefix: int) -> TokenIds:
        return TokenIds.of(np.arange(trace * 10_000, trace * 10_000 + LENGTH + prefix, dtype=np.uint32))

    return SamplingJob(FullEstimate(PREFIXES, 1), prompt, SAMPLING, tuple, LENGTH + PREFIXES)


def rate(urls: tuple[str, ...], model: Checkpoint) -> float:
    """Completions a second."""
    engine, traces = RemoteServers(Engine(endpoints=urls, max_num_seqs=SLOTS)), TRACES_EACH * len(urls)
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(f"sqlite:///{folder}/store.sqlite")
        rollouts = RolloutExecutor(store, [EngineScheduler(engine, model)], Purpose.PROBE, 0)
        began = time.perf_counter()
        rollouts.run_to_completion(map(job, range(traces)))
        seconds = time.perf_counter() - began
        store.close()
    assert rollouts.usage.generated_tokens == traces * PREFIXES * TOKENS
    return traces * PREFIXES / seconds


def main() -> None:
    model, counts = Checkpoint.open(TINY_MODEL), (1, 2, 4, 8)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with ExitStack() as stack:
        urls = tuple(stack.enter_context(null_server(model.fingerprint, SECONDS)) for _ in range(max(counts)))
        for _ in range(ROUNDS):
            for count in counts:
                rates[count].append(rate(urls[:count], model))
            print({count: round(found[-1]) for count, found in rates.items()}, flush=True)
    times = {count: median(many / one for many, one in zip(rates[count], rates[1], strict=True)) for count in counts}
    ideal = SLOTS / SECONDS
    result = {"completions_per_second": rates, "of_one_server": times, "ideal_of_one": ideal} | machine()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(", ".join(f"{count}: {value:.2f} ×" for count, value in times.items()))


if __name__ == "__main__":
    main()
