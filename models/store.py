"""The rollout store: no finished completion is ever generated twice.

Knows: completions, what identifies one, two SQL tables. Must not know: pipelines, verdicts, how completions are drawn.

A completion is identified by model fingerprint, prompt token ids, sampling settings, run seed, purpose and sample
index. *Finished* means its row is committed. The purpose keeps stages apart: a benchmark never reads what curation
drew, and the seed keeps runs apart.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from array import array
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    or_,
    select,
)  # fmt: skip
from sqlalchemy import (
    Engine as Database,
)
from sqlalchemy.dialects import postgresql, sqlite

from models.checkpoint import Checkpoint
from models.engine import Completion, Request

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
CLAIMS = Table(
    "claims", METADATA,
    Column("identity", LargeBinary(32), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("expires", Double, nullable=False),
)  # fmt: skip
CLAIM_SECONDS = 60.0
"""A claim that is not renewed for so long belongs to a run that died."""
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


class Stored(NamedTuple):
    """A completion on its way into the store."""

    key: bytes
    sample: int
    model: Checkpoint
    purpose: Purpose
    completion: Completion

    def columns(self) -> dict[str, bytes | int | str | bool]:
        return {
            "identity": self.key, "sample": self.sample, "model": self.model.fingerprint, "purpose": self.purpose,
            "token_ids": array("I", self.completion.token_ids).tobytes(), "finished": self.completion.finished,
        }  # fmt: skip


class RolloutStore:
    """Completions by identity, committed in groups; claims keep two runs from drawing the same."""

    def __init__(self, url: str):
        self._database = _open(url)
        insert = INSERTS[self._database.dialect.name]
        self._insert = insert(COMPLETIONS).on_conflict_do_nothing()
        claim = insert(CLAIMS)
        self._claim = claim.on_conflict_do_update(
            index_elements=["identity"],
            set_={"owner": claim.excluded.owner, "expires": claim.excluded.expires},
            where=or_(CLAIMS.c.expires < bindparam("now"), CLAIMS.c.owner == claim.excluded.owner),
        )
        self._owner = uuid.uuid4().hex

    def held(self, keys: Sequence[bytes]) -> dict[bytes, list[Completion]]:
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

    def commit(self, rows: Sequence[Stored]) -> bool:
        """Makes completions durable, and gives back the claims on their keys. What is stored already stays: False when
        some of `rows` came too late."""
        keys = list({row.key for row in rows})
        with self._database.begin() as connection:
            new = connection.execute(self._insert, [row.columns() for row in rows]).rowcount
            connection.execute(delete(CLAIMS).where(CLAIMS.c.identity.in_(keys), CLAIMS.c.owner == self._owner))
        return new == len(rows)

    def claim(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of `keys` this store may draw now: those that nobody else has claimed, for CLAIM_SECONDS. Claiming
        again what is one's own renews it."""
        now = time.time()
        rows = [{"identity": key, "owner": self._owner, "expires": now + CLAIM_SECONDS} for key in keys]
        mine = select(CLAIMS.c.identity).where(CLAIMS.c.identity.in_(keys), CLAIMS.c.owner == self._owner)
        with self._database.begin() as connection:
            connection.execute(self._claim, [{**row, "now": now} for row in rows])
            return set(connection.execute(mine).scalars())

    def release(self) -> None:
        """Gives back all claims."""
        with self._database.begin() as connection:
            connection.execute(delete(CLAIMS).where(CLAIMS.c.owner == self._owner))

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
