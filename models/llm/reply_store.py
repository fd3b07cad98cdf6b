"""A persistent cache of replies of auxiliary models: no reply is paid for twice.

The key covers the complete request: endpoint, model, messages, schema, sampling, sample number.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, NamedTuple

from sqlalchemy import Column, Double, Integer, LargeBinary, MetaData, String, Table, Text, select

from models.database import UPSERTS, changing_tables, connect, survives_restarts

REPLIES = Table(
    "replies",
    MetaData(),
    Column("identity", LargeBinary(32), primary_key=True),
    Column("content", Text, nullable=False),
    Column("finish", String(32), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("generated_tokens", Integer, nullable=False),
    Column("created", Double, nullable=False),
)


UNKNOWN = -1
"""Token count where the endpoint reports none. Older databases do not allow NULL in these columns."""


class CachedReply(NamedTuple):
    """A reply as received, valid or not."""

    content: str
    finish: str
    """Finish reason: `stop`, `length`, …"""
    prompt_tokens: int | None
    """None if the endpoint reports none."""
    generated_tokens: int | None


def reply_key(url: str, body: dict[str, Any], sample: int) -> bytes:
    return hashlib.sha256(json.dumps([url, body, sample], sort_keys=True).encode()).digest()


def _known_tokens(tokens: int) -> int | None:
    return None if tokens == UNKNOWN else tokens


class ReplyStore:
    def __init__(self, url: str):
        self._database = connect(url)
        with changing_tables(self._database) as connection:
            REPLIES.metadata.create_all(connection)

    @survives_restarts
    def find(self, key: bytes) -> CachedReply | None:
        columns = [REPLIES.c[name] for name in CachedReply._fields]
        with self._database.connect() as connection:
            row = connection.execute(select(*columns).where(REPLIES.c.identity == key)).first()
        return (
            CachedReply(row.content, row.finish, _known_tokens(row.prompt_tokens), _known_tokens(row.generated_tokens))
            if row
            else None
        )

    @survives_restarts
    def keep(self, key: bytes, reply: CachedReply) -> None:
        """Stores a reply, unless the key has one."""
        upsert = UPSERTS[self._database.dialect.name](REPLIES)
        with self._database.begin() as connection:
            counts = {name: UNKNOWN if value is None else value for name, value in reply._asdict().items()}
            values = {"identity": key, "created": time.time(), **counts}
            connection.execute(upsert.values(values).on_conflict_do_nothing())

    def close(self) -> None:
        self._database.dispose()
