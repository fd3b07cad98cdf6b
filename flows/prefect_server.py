"""A private Prefect server on loopback, for runs without PREFECT_API_URL. It ends with this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from conf.errors import ReadableError
from models.processes import GuardedProcess, free_port

START_TIMEOUT = 120.0
"""Seconds."""


class PrefectNotReady(ReadableError):
    """Prefect's server did not start."""


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The API's URL: PREFECT_API_URL if set, else that of a new server with its database in `home`.

    Raises PrefectNotReady.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        yield url
        return
    port = free_port()
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # the server ends with the run and would miss the last lines
    }
    os.environ.update(environment)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    with GuardedProcess(command, home / "server.log", environment) as server:
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_healthy(server, url)
        os.environ["PREFECT_API_URL"] = url
        try:
            yield url
        finally:
            del os.environ["PREFECT_API_URL"]


def _wait_until_healthy(server: GuardedProcess, url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise PrefectNotReady(f"Prefect's server did not start; end of {server.log}:\n{server.log_tail()}")
        time.sleep(0.2)
