"""Database connections for several concurrent runs, durable against kills. Supports SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Insert, Table, bindparam, create_engine, event, or_, text
from sqlalchemy import Engine as Database
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_random

from models.file_systems import validate_file_system
from models.outages import repeats_while

UPSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LOCKS = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(5318008)"}
"""Statements that lock our tables against schema changes until the transaction ends; the number is an arbitrary lock
id."""

AWAY_STATES = ("08", "57P", "53300")
"""Beginnings of PostgreSQL's error codes for a server that ends, starts, or has no connection free."""


def is_away(error: BaseException) -> bool:
    """Whether a PostgreSQL server was lost, or cannot be reached. SQLite's errors have no state."""
    if not isinstance(error, DBAPIError) or not hasattr(error.orig, "sqlstate"):
        return False
    state = error.orig.sqlstate  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    if state is None:  # the server did not answer, or was not asked: its client refuses a value
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return state.startswith(AWAY_STATES)


survives_restarts = repeats_while(is_away)
"""Of a transaction: it may have been committed when the answer was lost."""


def taking(table: Table, key: str, dialect: str) -> Insert:
    """Takes rows of a table with `key`, `owner` and `expires`: those that nobody has, whose owner has let them expire
    before the parameter `now`, or that are the owner's already."""
    take = UPSERTS[dialect](table)
    return take.on_conflict_do_update(
        index_elements=[key],
        set_={"owner": take.excluded.owner, "expires": take.excluded.expires},
        where=or_(table.c.expires < bindparam("now"), table.c.owner == take.excluded.owner),
    )


def connect(url: str) -> Database:
    """Raises NetworkFileSystem for an SQLite file on a network file system, before the file is touched."""
    validate_file_system(url)
    database = create_engine(url, hide_parameters=True)  # errors are logged; rows are not
    if database.dialect.name == "sqlite":

        @event.listens_for(database, "connect")
        def _(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA busy_timeout=60000")
            _use_write_ahead_log(connection)
            # A committed row survives a power cut, not only a killed process.
            connection.execute("PRAGMA synchronous=FULL")

    return database


@retry(
    retry=retry_if_exception_message(match="database is locked"),
    wait=wait_random(0, 0.1),
    stop=stop_after_delay(60),
    reraise=True,
)
def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite's busy timeout does not cover this statement, hence the retries."""
    connection.execute("PRAGMA journal_mode=WAL")


@contextmanager
def changing_tables(database: Database) -> Iterator[Connection]:
    """An exclusive transaction for creating or changing tables: several runs may open a new database at once."""
    with database.begin() as connection:
        connection.execute(text(LOCKS[database.dialect.name]))
        yield connection
