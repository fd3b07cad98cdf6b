"""What a request costs outside the model: completions a second of the rollout executor against two servers that answer
at once, and of a bare asynchronous client in the same run.

    python -m bench.client                    # writes bench/results/client.json

Prompts of 4,096 token ids, eight tokens back. The executor also looks each completion up, commits it to an SQLite store
and scores it; the bare client does none of that.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import aiohttp
import numpy as np
import orjson

from bench.null_server import null_server
from bench.rollouts import machine
from conf.engine import Engine
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler
from reasoning.token_ids import TokenIds

RESULT = Path(__file__).parent / "results" / "client.json"
LENGTH, CONCURRENCY, REQUESTS, ROUNDS = 4096, 256, 4000, 5
SAMPLING = Sampling(samples=1, max_tokens=8)


def prompt(number: int) -> TokenIds:
    return TokenIds.of(np.arange(number, number + LENGTH, dtype=np.uint32))


async def bare(urls: Sequence[str], model: str) -> int:
    """Tokens that came back."""
    numbers, tokens = iter(range(REQUESTS)), 0
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def work() -> None:
            nonlocal tokens
            for number in numbers:
                body = {"model": model, "prompt": prompt(number).array, "n": 1, "max_tokens": 8}
                content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
                async with client.post(f"{urls[number % len(urls)]}/v1/completions", data=content) as reply:
                    tokens += len(orjson.loads(await reply.read())["choices"][0]["token_ids"])

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return tokens


def ours(urls: Sequence[str], model: Checkpoint) -> int:
    """Tokens that came back."""
    engine = RemoteServers(Engine(endpoints=tuple(urls), max_num_seqs=CONCURRENCY // len(urls)))
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(f"sqlite:///{folder}/store.sqlite")
        rollouts = RolloutExecutor(store, [EngineScheduler(engine, model)], Purpose.PROBE, 0)
        found = rollouts.sample([Request(prompt(number), SAMPLING, 1) for number in range(REQUESTS)])
        store.close()
    return sum(len(group[0].token_ids) for group in found if isinstance(group[0], Completion))  # type: ignore[index]


def main() -> None:
    model = Checkpoint.open(TINY_MODEL)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    with null_server(model.fingerprint) as one, null_server(model.fingerprint) as other:
        urls = (one, other)
        for _ in range(ROUNDS):
            for name, once in (
                ("bare", lambda: asyncio.run(bare(urls, model.fingerprint))),
                ("ours", lambda: ours(urls, model)),
            ):
                began = time.perf_counter()
                assert once() == REQUESTS * 8
                rates[name].append(REQUESTS / (time.perf_counter() - began))
            print({name: round(found[-1]) for name, found in rates.items()}, flush=True)
    ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    result = {"completions_per_second": rates, "ours_of_bare": median(ratios)} | machine()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"ours ÷ bare: {median(ratios):.2f}")


if __name__ == "__main__":
    main()
