"""What is repeated while a database is away, and what is not."""

import sqlite3
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from models import outages
from models.database import is_away
from models.outages import repeats_while


def wrapped(kind: type[DBAPIError], original: Exception, invalidated: bool = False) -> DBAPIError:
    return kind("SELECT 1", {}, original, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(OperationalError, errors.AdminShutdown("terminating connection")),
        wrapped(OperationalError, errors.CannotConnectNow("the database system is starting up")),
        wrapped(OperationalError, errors.TooManyConnections("sorry, too many clients already")),
        wrapped(OperationalError, psycopg.OperationalError("connection refused")),
        wrapped(InterfaceError, psycopg.InterfaceError("the connection is closed")),
        wrapped(DBAPIError, psycopg.Error("lost"), invalidated=True),
    ],
    ids=repr,
)
def test_a_server_that_is_away_is_waited_for(error: DBAPIError):
    assert is_away(error)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(OperationalError, errors.DiskFull("could not extend file")),
        wrapped(ProgrammingError, errors.UndefinedTable("no such table")),
        wrapped(DBAPIError, psycopg.DataError("PostgreSQL text fields cannot contain NUL bytes")),
        wrapped(ProgrammingError, psycopg.ProgrammingError("cannot adapt type")),
        wrapped(OperationalError, sqlite3.OperationalError("database or disk is full")),
        ConnectionError("of something else"),
    ],
    ids=repr,
)
def test_a_mistake_is_not(error: Exception):
    assert not is_away(error)


class Away(Exception):
    pass


def test_a_call_is_repeated_until_it_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    calls: list[Any] = []

    @repeats_while(lambda error: isinstance(error, Away))
    def call(value: int) -> int:
        calls.append(value)
        if len(calls) < 3:
            raise Away
        return value + 1

    assert call(4) == 5
    assert calls == [4, 4, 4]


def test_another_error_is_raised_at_once():
    calls: list[Any] = []

    @repeats_while(lambda error: isinstance(error, Away))
    def call() -> None:
        calls.append(None)
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        call()
    assert len(calls) == 1


def test_what_stays_away_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 0.0)

    @repeats_while(lambda error: isinstance(error, Away))
    def call() -> None:
        raise Away("still")

    with pytest.raises(Away, match="still"):
        call()
