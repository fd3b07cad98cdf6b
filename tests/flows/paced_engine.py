"""A scripted engine for workers in other processes: it takes its time, logs what it samples, and stops on demand.

PACED_LOG: a file that gets a line with the process id for each completion. PACED_HOLD: while this file exists, only
TICKETS requests are served; a process whose requests wait makes a file `waits-PID` beside it. PACED_SECONDS:
time that a request takes.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.engine import Engine
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Deliver, FailedRequest, Finished, Request, Session
from models.inference.scripted_engine import ScriptedEngine
from tests.flows.world import speak

HOLD = Path(os.environ.get("PACED_HOLD", "/none"))
TICKETS = 6
"""Requests that are served in all while HOLD exists: of twelve in shards of two, so few that two workers with two
shards in hand both wait."""


def _has_ticket() -> bool:
    """Takes one, which no other request of any process gets."""
    for number in range(TICKETS):
        with suppress(FileExistsError):
            HOLD.with_name(f"ticket-{number}").touch(exist_ok=False)
            return True
    return False


class PacedEngine(ScriptedEngine):
    """Serves four requests at a time, and delivers each when it is done."""

    max_concurrency = 16

    def __init__(self) -> None:
        super().__init__(speak)

    def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
        while HOLD.exists() and not _has_ticket():
            HOLD.with_name(f"waits-{os.getpid()}").touch()
            time.sleep(0.02)
        time.sleep(float(os.environ.get("PACED_SECONDS", "0")))
        done = super().serve(model, request_id, request)
        with Path(os.environ["PACED_LOG"]).open("a") as log:
            log.write(f"{os.getpid()}\n" * request.count)
        return done

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        with ThreadPoolExecutor(4) as threads:
            yield _PacedSession(self, model, deliver, threads)


class _PacedSession:
    def __init__(self, engine: PacedEngine, model: Checkpoint, deliver: Deliver, threads: ThreadPoolExecutor):
        self._engine, self._model, self._deliver, self._threads = engine, model, deliver, threads

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        _ = affinity_key
        self._threads.submit(lambda: self._deliver(self._engine.serve(self._model, request_id, request)))


def make_engine(_settings: Engine, _log: Path, before_start: Callable[[], None]) -> PacedEngine:
    before_start()
    return PacedEngine()
