"""An engine for workers over a server of their own that takes a scripted time for each reply. It is a module of its own
because workers in other processes find its class by name."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from conf.engine import Engine as EngineSettings
from models.checkpoints.checkpoint import Checkpoint
from models.inference.remote_servers import RemoteServer
from models.inference.server_engine import ServerEngine
from models.processes import GuardedProcess

SLOTS, SECONDS = 32, 0.5
STARTING = threading.Lock()


class NullServers(ServerEngine):
    """An engine over a server that it starts, which answers every request with the same tokens."""

    def __init__(self, settings: EngineSettings, log: Path, _before_start: Callable[[], None]):
        super().__init__(settings, 1)
        self._log = log
        self._process: GuardedProcess | None = None

    def _serve(self, model: Checkpoint) -> Sequence[RemoteServer]:
        with STARTING:
            if not self._process:
                command = [sys.executable, "-m", "bench.null_server", model.fingerprint, str(SECONDS), str(SLOTS)]
                self._process = GuardedProcess(command, self._log)
            while not (port := self._log.read_text().strip()):
                time.sleep(0.05)
        return [RemoteServer(f"http://127.0.0.1:{port}", model, self._settings)]

    def close(self) -> None:
        if self._process:
            self._process.end()
