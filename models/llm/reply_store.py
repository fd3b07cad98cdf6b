"""Replies of auxiliary models, kept for good: none is paid for twice.

Knows: one SQL table. Must not know: HTTP, roles, prices.

A reply is identified by everything that was asked: endpoint, model, messages, schema, sampling, which sample.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, NamedTuple

from sqlalchemy import Column, Double, Integer, LargeBinary, MetaData, String, Table, Text, select

from models.database import UPSERTS, changing_tables, connect

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


UNTOLD = -1
"""In a column of tokens: the endpoint does not say. Older databases hold columns that allow no NULL."""


class CachedReply(NamedTuple):
    """A reply as it came, whatever it is worth."""

    content: str
    finish: str
    """Why it ended: `stop`, `length`, …"""
    prompt_tokens: int | None
    """None where the endpoint does not say."""
    generated_tokens: int | None


def reply_key(url: str, body: dict[str, Any], sample: int) -> bytes:
    return hashlib.sha256(json.dumps([url, body, sample], sort_keys=True).encode()).digest()


def _told(tokens: int) -> int | None:
    return None if tokens == UNTOLD else tokens


class ReplyStore:
    def __init__(self, url: str):
        self._database = connect(url)
        with changing_tables(self._database) as connection:
            REPLIES.metadata.create_all(connection)

    def find(self, key: bytes) -> CachedReply | None:
        columns = [REPLIES.c[name] for name in CachedReply._fields]
        with self._database.connect() as connection:
            row = connection.execute(select(*columns).where(REPLIES.c.identity == key)).first()
        return (
            CachedReply(row.content, row.finish, _told(row.prompt_tokens), _told(row.generated_tokens)) if row else None
        )

    def keep(self, key: bytes, reply: CachedReply) -> None:
        """The first reply to a question stays."""
        upsert = UPSERTS[self._database.dialect.name](REPLIES)
        with self._database.begin() as connection:
            told = {name: UNTOLD if value is None else value for name, value in reply._asdict().items()}
            values = {"identity": key, "created": time.time(), **told}
            connection.execute(upsert.values(values).on_conflict_do_nothing())

    def close(self) -> None:
        self._database.dispose()
