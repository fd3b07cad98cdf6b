"""The rollout store: no finished completion is ever generated twice.

Knows: completions, what identifies one, one SQL table. Must not know: pipelines, verdicts, how completions are drawn.

A completion is identified by model fingerprint, prompt token ids, sampling settings, run seed, purpose and sample
index. *Finished* means its row is committed. The purpose keeps stages apart: a benchmark never reads what curation
drew, and the seed keeps runs apart.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    select,
)  # fmt: skip
from sqlalchemy import (
    Engine as Database,
)
from sqlalchemy.dialects import postgresql, sqlite

from models.checkpoint import Checkpoint
from models.engine import Completion, Engine, Finished, Request
from reasoning.records import Usage

METADATA = MetaData()
COMPLETIONS = Table(
    "completions", METADATA,
    Column("identity", LargeBinary(32), primary_key=True),
    Column("sample", Integer, primary_key=True),
    Column("model", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("finished", Boolean, nullable=False),
)  # fmt: skip
INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LOOKUP = 500
"""Identities asked for in one query."""


class Purpose(StrEnum):
    """What a completion is drawn for."""

    TRAIN = "train"
    PROBE = "probe"
    RECHECK = "recheck"
    FINALIZE = "finalize"
    PREMATURE = "premature"
    PRUNE = "prune"
    PRUNE_CHECK = "prune-check"
    EARLY_STOP = "early-stop"
    BENCHMARK = "benchmark"


class Drawn(NamedTuple):
    """The completions of each request, in order, and what drawing the missing ones cost."""

    completions: list[tuple[Completion, ...]]
    usage: Usage


class RolloutStore:
    """Draws through to an engine for what it does not hold yet."""

    def __init__(self, url: str, engine: Engine):
        self._database = _open(url)
        self._insert = INSERTS[self._database.dialect.name](COMPLETIONS).on_conflict_do_nothing()
        self._engine = engine

    def draw(
        self,
        model: Checkpoint,
        requests: Sequence[Request],
        purpose: Purpose,
        seed: int,
        progress: Callable[[int, int], None] = lambda completions, tokens: None,
    ) -> Drawn:
        """Completions 0 … count−1 of every request; requests that are alike share theirs.

        `progress` hears, as they come, how many more requests are done and tokens were generated.
        """
        keys = [identity(model, request, purpose, seed) for request in requests]
        wanted: dict[bytes, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in wanted or request.count > wanted[key].count:
                wanted[key] = request
        held = held_before = self._held(list(wanted))
        missing = {
            key: replace(request, count=request.count - len(held[key]))
            for key, request in wanted.items()
            if request.count > len(held[key])
        }
        progress(len(requests) - len(missing), 0)
        usage = self._generate(model, missing, {key: len(held[key]) for key in missing}, purpose, progress)
        if missing:  # read again: where two runs drew the same completion, the one that was committed first counts
            held = held | self._held(list(missing))
        reused = sum(request.count for request in requests) - sum(request.count for request in missing.values())
        drawn = [tuple(held[key][: request.count]) for key, request in zip(keys, requests, strict=True)]
        worth = sum(
            model.shape.forward_flops(len(request.prompt_ids), len(request.prompt_ids), len(completion.token_ids))
            for key, request in wanted.items()
            for completion in held_before[key][: request.count]
        )
        return Drawn(drawn, usage.model_copy(update={"reused_completions": reused, "reused_flops": worth}))

    def _generate(
        self,
        model: Checkpoint,
        missing: dict[bytes, Request],
        held: dict[bytes, int],
        purpose: Purpose,
        progress: Callable[[int, int], None],
    ) -> Usage:
        """Draws `missing`, counting on from the `held` samples of each; every batch is committed as it comes."""
        usage = Usage()
        keys = list(missing)
        for batch in self._engine.generate(model, list(missing.values())) if missing else ():
            rows = [
                _row(keys[finished.index], sample, model, purpose, completion)
                for finished in batch
                for sample, completion in enumerate(finished.completions, start=held[keys[finished.index]])
            ]
            with self._database.begin() as connection:
                connection.execute(self._insert, rows)
            for finished in batch:
                usage = usage + _cost(model, finished)
                progress(1, sum(len(completion.token_ids) for completion in finished.completions))
        return usage

    def _held(self, keys: Sequence[bytes]) -> dict[bytes, list[Completion]]:
        """What is stored under each key, by sample index."""
        held: dict[bytes, list[Completion]] = {key: [] for key in keys}
        columns = COMPLETIONS.c
        with self._database.connect() as connection:
            for start in range(0, len(keys), LOOKUP):
                query = (
                    select(columns.identity, columns.token_ids, columns.finished)
                    .where(columns.identity.in_(keys[start : start + LOOKUP]))
                    .order_by(columns.sample)
                )
                for key, token_ids, finished in connection.execute(query):
                    held[key].append(Completion(tuple(array("I", token_ids)), finished))
        return held

    def close(self) -> None:
        self._database.dispose()


def identity(model: Checkpoint, request: Request, purpose: Purpose, seed: int) -> bytes:
    """SHA-256 over all that decides the distribution a completion is drawn from, and who it is drawn for."""
    sampling = request.sampling.model_dump(exclude={"samples"})
    head = json.dumps([model.fingerprint, sampling, seed, purpose], sort_keys=True, allow_nan=False)
    return hashlib.sha256(head.encode() + b"\0" + array("I", request.prompt_ids).tobytes()).digest()


def _open(url: str) -> Database:
    database = create_engine(url)
    if database.dialect.name == "sqlite":

        @event.listens_for(database, "connect")
        def _(connection: object, _record: object) -> None:
            # FULL: a committed row survives a power cut, not only a killed process.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=60000"):
                connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    METADATA.create_all(database)
    return database


def _row(
    key: bytes, sample: int, model: Checkpoint, purpose: Purpose, completion: Completion
) -> dict[str, bytes | int | str | bool]:
    return {
        "identity": key, "sample": sample, "model": model.fingerprint, "purpose": purpose,
        "token_ids": array("I", completion.token_ids).tobytes(), "finished": completion.finished,
    }  # fmt: skip


def _cost(model: Checkpoint, finished: Finished) -> Usage:
    """What one finished request cost. The first sample pays for the uncached prompt, the others share it."""
    prompt, cached = finished.prompt_tokens, finished.cached_prompt_tokens
    lengths = [len(completion.token_ids) for completion in finished.completions]
    flops = sum(
        model.shape.forward_flops(prompt, cached if index == 0 else prompt, length)
        for index, length in enumerate(lengths)
    )
    return Usage(prompt_tokens=prompt, cached_prompt_tokens=cached, generated_tokens=sum(lengths), flops=flops)
