"""Training over two nodes of a local Ray cluster, with PyTorch's launcher on each, against one process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.training.train import run
from tests.models.training.test_processes_stack import assert_trained_alike, jobs
from tests.services import REPOSITORY, RayCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    made = RayCluster(tmp_path, {}, gpus=0)
    made.add_node()
    yield made
    made.close()


def test_two_nodes_train_as_one_process_does(cluster: RayCluster, tmp_path: Path):
    (alone,), (spread,) = (jobs(tmp_path / name, ["sft"]) for name in ("one", "two"))
    folder = spread.progress.parent
    command = [sys.executable, "-m", "tests.tasks.runtime.ray_training", cluster.address, str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert {log.name for log in folder.glob("train*.log")} == {"train.log", "train-1.log"}
    run(alone.progress.parent / "job.json")
    assert_trained_alike(alone, spread)
