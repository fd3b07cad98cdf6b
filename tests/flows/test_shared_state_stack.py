"""Machines that share a state: PostgreSQL behind Prefect and the rollout store, S3 behind the artifacts.

Each machine is a process with a home and a working folder of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.processes import GuardedProcess, free_port
from tests.flows import processes_of_runs
from tests.flows.processes_of_runs import stored
from tests.flows.test_dto_stack import EVERY_STEP
from tests.flows.test_operations_stack import REPOSITORY, is_healthy
from tests.services import Postgres, S3Server
from tests.waiting import until

NEVER = 10**9


@pytest.fixture(scope="module")
def prefect_url(
    postgres_server: Postgres, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A Prefect server whose database is PostgreSQL."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {
        "PREFECT_API_DATABASE_CONNECTION_URL": postgres_server.database().replace("+psycopg", "+asyncpg"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home),
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--no-ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with GuardedProcess(command, home / "server.log", environment):
        url = f"http://127.0.0.1:{port}/api"
        until(lambda: is_healthy(url), "Prefect's server")
        yield url


class Site:
    """A storage and a store, and the machines that share them."""

    def __init__(self, folder: Path, prefect_url: str, postgres: Postgres, s3: S3Server):
        self.folder, self.postgres, self.s3 = folder, postgres, s3
        self.store, self.root = postgres.database(), f"{s3.bucket()}/results"
        self._environment = s3.environment | {"PREFECT_API_URL": prefect_url, "PYTHONPATH": str(REPOSITORY)}

    def machine(self, name: str, *changes: str, hold_after: int = NEVER) -> subprocess.Popen[str]:
        """Starts a run on the machine `name`."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        changes = (f"storage.root={self.root}", f"storage.rollout_store={self.store}", *changes)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.flows.host", str(hold_after), *changes],
            cwd=home,
            env=os.environ | self._environment | {"PREFECT_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(home / "log").open("w"),
            text=True,
        )

    def stored(self) -> int:
        """Completions in the store."""
        return stored(self.store)


def until_held(machine: subprocess.Popen[str]) -> None:
    assert machine.stdout
    assert machine.stdout.readline() == "held\n"


def figures(machine: subprocess.Popen[str]) -> dict[str, Any]:
    return processes_of_runs.figures(machine, "\n")


@pytest.fixture
def site(
    prefect_url: str, postgres_server: Postgres, s3: Callable[[], str], s3_server: S3Server, tmp_path: Path
) -> Site:
    _ = s3  # its variables
    return Site(tmp_path, prefect_url, postgres_server, s3_server)


def test_nothing_finished_is_lost_or_redone_when_database_and_storage_fail(site: Site):
    run = site.machine("one", hold_after=40)
    until_held(run)
    assert run.stdin
    site.postgres.crash()
    run.stdin.write("\n")
    run.stdin.flush()
    site.postgres.start()
    site.s3.failures = 12  # the client itself tries each request six times
    first = figures(run)
    assert site.s3.failures == 0
    assert (first["made"], first["warnings"]) == (EVERY_STEP, [])
    assert first["completions"] == site.stored()
    second = figures(site.machine("two"))
    assert (second["made"], second["completions"]) == ([], 0)
    assert second["models"] == first["models"]


def test_two_machines_at_one_time_make_nothing_twice(site: Site):
    runs = [site.machine(name) for name in ("one", "two")]
    both = [figures(run) for run in runs]
    assert sorted([*both[0]["made"], *both[1]["made"]]) == sorted(EVERY_STEP)
    assert both[0]["completions"] + both[1]["completions"] == site.stored()
    assert both[0]["models"] == both[1]["models"]


def test_a_machine_that_dies_leaves_all_that_it_had_finished(site: Site):
    run = site.machine("one", hold_after=60)
    until_held(run)
    run.kill()
    run.communicate()
    before = site.stored()
    second = figures(site.machine("two"))
    assert second["completions"] == site.stored() - before
