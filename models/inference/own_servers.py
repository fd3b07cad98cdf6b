"""Replicas of a model on this machine: an engine over vLLM servers of this process, one for each group of GPUs.

It knows which GPUs each server gets, and that all must serve the same proven weights. It must not know what is sampled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from conf.engine import Engine as EngineSettings
from models.checkpoints.checkpoint import Checkpoint
from models.inference.devices import on_cpu, replica_gpus, server_gpus
from models.inference.dispatcher import Endpoint, ServerFailed
from models.inference.engine import Deliver, Engine, FailedRequest, ScorableText, Session
from models.inference.server_engine import ServerEngine
from models.inference.vllm_server import VllmServer, block_size

logger = logging.getLogger(__name__)


class OwnServers(ServerEngine):
    """An `Engine` of `engine.replicas` servers. Sessions of one model may run side by side; one of another model waits
    for their end, because weights are swapped only while no request is in flight."""

    def __init__(
        self,
        settings: EngineSettings,
        log: Path,
        before_start: Callable[[], None] = lambda: None,
        lora_rank: int = 0,
    ):
        """`log`: of the first replica; the others' have a number. `before_start`, `lora_rank`: as VllmServer takes
        them. Raises TooFewGpus."""
        groups = replica_gpus(settings, server_gpus())
        super().__init__(settings, len(groups))
        self.block = block_size()
        self.servers = [
            VllmServer(settings, path, before_start, gpus, index, lora_rank)
            for index, gpus in enumerate(groups)
            for path in [log.with_stem(f"{log.stem}-{index}") if index else log]
        ]
        """Those that have not failed to start."""
        self._sessions = SharedBy()

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        """See `Engine.session`. Raises ServerFailed, WeightSyncError."""
        with self._sessions.of(model.fingerprint), super().session(model, deliver) as session:
            yield session

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """See `Engine.log_probs`. Raises as `session` does."""
        with self._sessions.of(model.fingerprint):
            yield from super().log_probs(model, texts)

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def _serve(self, model: Checkpoint) -> Sequence[Endpoint]:
        """Each replica starts, or proves its weights, beside the others. One that cannot start is left out from now on,
        unless it is the last: a node goes on without a broken GPU."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            attempts = [(server, pool.submit(server.serve, model)) for server in self.servers]
        failures = {server: error for server, attempt in attempts if (error := attempt.exception())}
        for server, error in failures.items():
            if not isinstance(error, ServerFailed) or len(failures) == len(self.servers):
                raise error
            logger.warning("the run goes on without the replica on GPU %s: %s", "+".join(server.gpus), error)
            server.close()
        self.servers = [server for server in self.servers if server not in failures]
        return list(self.servers)


class SharedBy:
    """A lock that any number of holders share who hold it for the same name."""

    def __init__(self) -> None:
        self._name, self._holders, self._changed = "", 0, threading.Condition()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._holders or self._name == name)
            self._name, self._holders = name, self._holders + 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()


def serve_all(engines: Sequence[Engine], models: Sequence[Checkpoint]) -> None:
    """Makes each engine serve its model, starting servers if needed. Raises as `OwnServers.session`."""

    def serve(engine: Engine, model: Checkpoint) -> None:
        with engine.session(model, lambda _: None):
            pass

    # On a GPU, one after another: each server measures the free memory when it starts.
    with ThreadPoolExecutor(len(models) if on_cpu() else 1) as pool:
        list(pool.map(serve, engines, models))
