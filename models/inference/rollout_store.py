"""The rollout store: a finished completion is never generated twice.

A completion is identified by model fingerprint, prompt token ids and images, sampling settings, run seed, purpose and
sample index. *Finished* means that its row is committed. The purpose separates stages, so that a benchmark never reads
completions of training data; the seed separates runs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from copy import copy
from enum import StrEnum
from pathlib import Path
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
    delete,
    func,
    insert,
    inspect,
    make_url,
    or_,
    select,
    text,
)
from sqlalchemy import (
    Engine as Database,
)

from conf.errors import ReadableError
from models.checkpoints.checkpoint import Checkpoint
from models.database import UPSERTS, changing_tables, connect, survives_restarts, taking
from models.inference.engine import Completion, Request
from models.processes import is_dead, owner_name
from reasoning.token_ids import TokenIds

METADATA = MetaData()
COMPLETIONS = Table(
    "completions",
    METADATA,
    Column("identity", LargeBinary(32), primary_key=True),
    Column("sample", Integer, primary_key=True),
    Column("model", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("finished", Boolean, nullable=False),
    Column("created", Double),
)
"""`created`: seconds since 1970; null in rows stored before version 2."""
CLAIMS = Table(
    "claims",
    METADATA,
    Column("identity", LargeBinary(32), primary_key=True),
    Column("owner", String(300), nullable=False),
    Column("expires", Double, nullable=False),
)
SCHEMA = Table("schema", METADATA, Column("version", Integer, nullable=False))
VERSION = 2
"""1: completions. 2: claims, and the time at which a completion was stored."""
CLAIM_SECONDS = 180.0
"""Seconds after which a claim that is not renewed expires: its run has died. Longer than a database may be away."""
LOOKUP = 500
"""Keys per query."""


class Purpose(StrEnum):
    """The stage that a completion is sampled for."""

    TRAIN = "train"
    PROBE = "probe"
    VALUE = "value"
    COMPRESS = "compress"
    REESTIMATE = "recheck"
    FINALIZE = "finalize"
    PREMATURE = "premature"
    PRUNE = "prune"
    PRUNE_CHECK = "prune-check"
    EARLY_STOP = "early-stop"
    GRPO = "reinforce"
    BENCHMARK = "benchmark"


class StoredCompletion(NamedTuple):
    """A completion with its key and sample index."""

    key: bytes
    sample: int
    model: Checkpoint
    purpose: Purpose
    completion: Completion

    def columns(self) -> dict[str, bytes | int | float | str | bool]:
        return {
            "identity": self.key,
            "sample": self.sample,
            "model": self.model.fingerprint,
            "purpose": self.purpose,
            "token_ids": self.completion.token_ids.tobytes(),
            "finished": self.completion.finished,
            "created": time.time(),
        }


class StoreError(ReadableError):
    """The store cannot be used; the message says what to do."""


class StoreSummary(NamedTuple):
    """Stored completions of one model for one purpose."""

    model: str
    purpose: str
    completions: int
    bytes: int
    """Size of their token ids."""
    last: float | None
    """When the latest was stored, seconds since 1970; None if unknown."""


class RolloutStore:
    """Completions by key, committed in groups. Claims keep two runs from sampling the same completion."""

    def __init__(self, url: str):
        self._database = connect(url)
        _migrate(self._database, url)
        upsert = UPSERTS[self._database.dialect.name]
        self._insert = upsert(COMPLETIONS).on_conflict_do_nothing().returning(COMPLETIONS.c.sample)
        self._claim = taking(CLAIMS, "identity", self._database.dialect.name)
        self._owner = owner_name()
        self._release_dead_claims()

    def _release_dead_claims(self) -> None:
        """Releases the claims of killed runs of this machine, so that the next run need not wait."""
        with self._database.begin() as connection:
            owners = connection.execute(select(CLAIMS.c.owner).distinct()).scalars()
            dead = [owner for owner in owners if is_dead(owner)]
            connection.execute(delete(CLAIMS).where(CLAIMS.c.owner.in_(dead)))

    @survives_restarts
    def find(self, keys: Sequence[bytes]) -> dict[bytes, list[Completion]]:
        """Stored completions of each key, ordered by sample index."""
        found: dict[bytes, list[Completion]] = {key: [] for key in keys}
        columns = COMPLETIONS.c
        with self._database.connect() as connection:
            for start in range(0, len(keys), LOOKUP):
                query = (
                    select(columns.identity, columns.token_ids, columns.finished)
                    .where(columns.identity.in_(keys[start : start + LOOKUP]))
                    .order_by(columns.sample)
                )
                for key, token_ids, finished in connection.execute(query):
                    found[key].append(Completion(TokenIds.frombytes(token_ids), finished))
        return found

    @survives_restarts
    def commit(self, rows: Sequence[StoredCompletion]) -> bool:
        """Stores completions and releases the claims on their keys. Stored ones are never replaced: False if some of
        `rows` were already stored."""
        keys = list({row.key for row in rows})
        ordered = sorted(rows, key=lambda row: (row.key, row.sample))  # one lock order for all runs, against deadlocks
        with self._database.begin() as connection:
            new = len(connection.execute(self._insert, [row.columns() for row in ordered]).all())
            connection.execute(delete(CLAIMS).where(CLAIMS.c.identity.in_(keys), CLAIMS.c.owner == self._owner))
        return new == len(rows)

    @survives_restarts
    def claim(self, keys: Sequence[bytes]) -> set[bytes]:
        """Claims `keys` for CLAIM_SECONDS and returns those granted: all that no other run has claimed. Claiming one's
        own key again renews it."""
        now = time.time()
        rows = [{"identity": key, "owner": self._owner, "expires": now + CLAIM_SECONDS} for key in sorted(keys)]
        mine = select(CLAIMS.c.identity).where(CLAIMS.c.identity.in_(keys), CLAIMS.c.owner == self._owner)
        with self._database.begin() as connection:
            connection.execute(self._claim, [{**row, "now": now} for row in rows])
            return set(connection.execute(mine).scalars())

    @survives_restarts
    def release(self) -> None:
        """Releases all claims of this run."""
        with self._database.begin() as connection:
            connection.execute(delete(CLAIMS).where(CLAIMS.c.owner == self._owner))

    @survives_restarts
    def release_claims_of(self, process: str) -> None:
        """Releases the claims of a process that has gone, on whatever machine it was (`process_name`)."""
        with self._database.begin() as connection:
            connection.execute(delete(CLAIMS).where(CLAIMS.c.owner.startswith(f"{process}/", autoescape=True)))

    def with_own_claims(self) -> RolloutStore:
        """The same store, for one of several that sample side by side in this process: none releases what another has
        claimed."""
        own = copy(self)
        own._owner = owner_name()
        return own

    def summarise(self) -> list[StoreSummary]:
        """Stored completions by model and purpose."""
        columns = COMPLETIONS.c
        query = (
            select(
                columns.model,
                columns.purpose,
                func.count(),
                func.sum(func.length(columns.token_ids)),
                func.max(columns.created),
            )
            .group_by(columns.model, columns.purpose)
            .order_by(columns.model, columns.purpose)
        )
        with self._database.connect() as connection:
            return [StoreSummary(*row) for row in connection.execute(query)]

    def find_faults(self) -> list[str]:
        """Descriptions of damage: gaps in sample indices, rows with incomplete tokens."""
        columns = COMPLETIONS.c
        gaps = (
            select(columns.identity, func.count(), func.max(columns.sample))
            .group_by(columns.identity)
            .having(func.count() <= func.max(columns.sample))
        )
        torn = select(columns.identity, columns.sample).where(func.length(columns.token_ids) % 4 != 0)
        with self._database.connect() as connection:
            found = [
                f"{key.hex()}: {count} samples, the last is number {last}"
                for key, count, last in connection.execute(gaps)
            ]
            found += [f"{key.hex()}, sample {n}: incomplete tokens" for key, n in connection.execute(torn)]
        return found

    def delete_unused(self, keep: Sequence[str], before: float) -> int:
        """Deletes completions stored before `before` (seconds since 1970), except those of the models `keep`. Returns
        their number."""
        old = or_(COMPLETIONS.c.created < before, COMPLETIONS.c.created.is_(None))
        with self._database.begin() as connection:
            return connection.execute(delete(COMPLETIONS).where(old, COMPLETIONS.c.model.not_in(keep))).rowcount

    def close(self) -> None:
        self._database.dispose()


def existing_store(url: str) -> RolloutStore:
    """Opens a store without creating one. Raises StoreError if there is none."""
    database = make_url(url)
    if database.get_backend_name() == "sqlite" and not Path(database.database or "").is_file():
        raise StoreError(f"{url}: no such store; name it with --url")
    return RolloutStore(url)


def completion_key(model: Checkpoint, request: Request, purpose: Purpose, seed: int) -> bytes:
    """SHA-256 over everything that determines the distribution of a completion, and its purpose."""
    fields = [model.fingerprint, request.sampling.request, seed, purpose, *([request.stop] if request.stop else [])]
    fields += [{"images": request.images.digests}] if request.images else []
    head = json.dumps(fields, sort_keys=True, allow_nan=False)
    return hashlib.sha256(head.encode() + b"\0" + request.prompt_ids.tobytes()).digest()


def _migrate(database: Database, url: str) -> None:
    """Migrates an older store to VERSION. Raises StoreError for a newer one."""
    with changing_tables(database) as connection:
        known = inspect(connection)
        if not known.has_table("schema"):
            version = 1 if known.has_table("completions") else VERSION
        else:
            version = connection.execute(select(SCHEMA.c.version)).scalar_one()
        if version > VERSION:
            raise StoreError(f"{url}: made by a newer version of this software ({version} > {VERSION}); update it")
        METADATA.create_all(connection)
        if version < 2:
            connection.execute(text("ALTER TABLE completions ADD COLUMN created DOUBLE PRECISION"))
        connection.execute(delete(SCHEMA))
        connection.execute(insert(SCHEMA).values(version=VERSION))
