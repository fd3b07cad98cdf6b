"""DTO on a local Ray cluster of two nodes, with PostgreSQL behind the rollout store and S3 behind the artifacts. The
nodes are processes of this machine, their GPUs are numbers, and a scripted engine stands for the servers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows.processes_of_runs import figures, stored
from tests.flows.test_dto_stack import EVERY_STEP
from tests.services import REPOSITORY, Postgres, RayCluster, S3Server
from tests.waiting import until

WORKERS = ("engine.workers.kind=ray", "engine.workers.problems_per_shard=2")


class Cluster:
    """Ray, the shared state, and runs that use both."""

    def __init__(self, folder: Path, postgres: Postgres, s3: S3Server):
        self.folder, self.hold, self._log = folder, folder / "hold", folder / "sampled"
        self.store, self._root = postgres.database(), f"{s3.bucket()}/results"
        self._environment = s3.environment | {
            "PACED_HOLD": str(self.hold),
            "PACED_LOG": str(self._log),
            "PACED_SECONDS": "0.02",
        }
        self.ray = RayCluster(folder, self._environment)

    def run(self, *changes: str) -> subprocess.Popen[str]:
        """Starts a run of DTO."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        changes = (f"storage.root={self._root}", f"storage.rollout_store={self.store}", *changes)
        changes += (f"engine.workers.ray_address={self.ray.address}",)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.flows.workers_run", *changes],
            cwd=home,
            env=os.environ | self._environment | {"PREFECT_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=(home / "log").open("w"),
            text=True,
        )

    def sampled_by(self) -> list[int]:
        """For each completion that was sampled, the process that did so."""
        return [int(line) for line in self._log.read_text().split()] if self._log.exists() else []

    def log(self) -> str:
        return (self.folder / "home" / "log").read_text()

    def stored(self) -> int:
        """Completions in the store."""
        return stored(self.store)


@pytest.fixture
def cluster(postgres_server: Postgres, s3_server: S3Server, s3: Callable[[], str], tmp_path: Path) -> Iterator[Cluster]:
    _ = s3  # its variables
    made = Cluster(tmp_path, postgres_server, s3_server)
    yield made
    made.ray.close()


def test_a_node_that_dies_during_fan_out_costs_nothing_that_was_finished(cluster: Cluster):
    node = cluster.ray.add_node()
    cluster.hold.touch()
    run = cluster.run(*WORKERS)
    until(lambda: run.poll() or len([*cluster.folder.glob("waits-*")]) == 2, "requests in hand of both nodes")
    until(lambda: 0 < len(cluster.sampled_by()) == cluster.stored(), "what was sampled to be stored")
    node.end()
    cluster.hold.unlink()
    first = figures(run)
    assert (first["made"], first["warnings"]) == (EVERY_STEP, [])
    assert len(cluster.sampled_by()) == cluster.stored()
    assert "has gone; its shards go to the other workers" in cluster.log()
    assert first["gpus"] == 2
