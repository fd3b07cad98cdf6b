"""Leases: of several runs that need the same thing at one time, one makes it and the others wait.

It knows the database that the runs share. It must not know what is made.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Column, Double, MetaData, String, Table, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from models.database import changing_tables, connect, survives_restarts, taking
from models.processes import is_dead, owner_name

METADATA = MetaData()
LEASES = Table(
    "leases",
    METADATA,
    Column("key", String(200), primary_key=True),
    Column("owner", String(300), nullable=False),
    Column("expires", Double, nullable=False),
)
LEASE_SECONDS = 180.0
"""Seconds after which a lease that is not renewed expires: its holder has died, or is frozen. Longer than a database
may be away (`models.outages.OUTAGE_SECONDS`), so that an outage costs no lease."""
RENEWALS = 4
"""Renewals within that time."""
POLL_SECONDS = 1.0
"""Between two attempts to take a lease that another run holds."""


class LeaseLost(RuntimeError):
    """This run was frozen or cut off for so long that another one has taken over."""


class Lease:
    """A lease that is held. `owner` is unique: no two holders of a key, one after the other, have the same."""

    def __init__(self, owner: str, seconds: float):
        self.owner = owner
        self._seconds = seconds
        self._expires = -math.inf

    def renew(self, asked: float) -> None:
        """`asked`: the monotonic time before the database was asked, so that this run never counts on more time than
        the database gives it."""
        self._expires = asked + self._seconds

    def lose(self) -> None:
        self._expires = -math.inf

    def check(self) -> None:
        """Raises LeaseLost if another run may have taken over."""
        if time.monotonic() > self._expires:
            raise LeaseLost("another run may have taken over this step, because this one did not renew its lease")


class Leases:
    """Leases by key, in a table of the rollout store's database. Clocks of the machines that share it must agree to
    within a few seconds."""

    def __init__(self, url: str, seconds: float = LEASE_SECONDS, poll: float = POLL_SECONDS):
        self._database = connect(url)
        self._seconds, self._poll = seconds, poll
        with changing_tables(self._database) as connection:
            METADATA.create_all(connection)
        self._take = taking(LEASES, "key", self._database.dialect.name)

    @contextmanager
    def hold(self, key: str, on_wait: Callable[[str], None]) -> Iterator[Lease]:
        """Waits until no other run holds `key`, and holds it within the context. Calls `on_wait` with the holder's
        name before it waits."""
        lease = Lease(owner_name(), self._seconds)
        if holder := self._try(key, lease):
            on_wait(holder)
        while holder:
            time.sleep(self._poll)
            holder = self._try(key, lease)
        ended = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(key, lease, ended), daemon=True)
        renewer.start()
        try:
            yield lease
        finally:
            ended.set()
            renewer.join()
            with suppress(SQLAlchemyError):  # a lease that is not given back expires
                self._release(key, lease.owner)

    @survives_restarts
    def _try(self, key: str, lease: Lease) -> str:
        """Takes the lease if it is free, expired, or its holder is dead. The holder otherwise; empty if taken."""
        owner, asked, now = lease.owner, time.monotonic(), time.time()
        with self._database.begin() as connection:
            holder = connection.execute(select(LEASES.c.owner).where(LEASES.c.key == key)).scalar() or ""
            if holder and is_dead(holder):
                connection.execute(delete(LEASES).where(LEASES.c.key == key, LEASES.c.owner == holder))
            row = {"key": key, "owner": owner, "expires": now + self._seconds, "now": now}
            connection.execute(self._take, row)
            holder = connection.execute(select(LEASES.c.owner).where(LEASES.c.key == key)).scalar_one()
        if holder != owner:
            return holder
        lease.renew(asked)
        return ""

    def _renew(self, key: str, lease: Lease, ended: threading.Event) -> None:
        mine = update(LEASES).where(LEASES.c.key == key, LEASES.c.owner == lease.owner)
        wait = self._seconds / RENEWALS
        while not ended.wait(wait):
            asked, wait = time.monotonic(), self._poll  # soon again, if this fails
            with suppress(SQLAlchemyError), self._database.begin() as connection:
                if not connection.execute(mine.values(expires=time.time() + self._seconds)).rowcount:
                    lease.lose()
                    return
                lease.renew(asked)
                wait = self._seconds / RENEWALS

    def _release(self, key: str, owner: str) -> None:
        with self._database.begin() as connection:
            connection.execute(delete(LEASES).where(LEASES.c.key == key, LEASES.c.owner == owner))

    def close(self) -> None:
        self._database.dispose()
