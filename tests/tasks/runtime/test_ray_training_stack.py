"""Training over two nodes of a local Ray cluster, with PyTorch's launcher on each, against one process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.training.train import run
from tests.models.training.test_processes_stack import assert_trained_alike, jobs, steps
from tests.services import REPOSITORY, RayCluster
from tests.waiting import until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    made = RayCluster(tmp_path, {}, gpus=0)
    made.add_node()
    yield made
    made.close()


def test_a_training_whose_node_has_gone_is_told_and_waits_for_another_when_it_is_repeated(
    cluster: RayCluster, tmp_path: Path
):
    """Without a checkpoint: on a CPU, those of several processes cannot be read again, unless they are sharded."""
    (spread,) = jobs(tmp_path / "two", ["sft"], count=320, save_steps=1000)
    folder = spread.progress.parent
    command = [sys.executable, "-m", "tests.tasks.runtime.ray_training", cluster.address, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as first:  # type: ignore[call-overload]
        until(lambda: len(steps(spread)) > 2 if spread.progress.exists() else first.poll(), "steps of the training")
        cluster.nodes[-1].end()
        told, _ = first.communicate()
    assert first.returncode
    assert "TrainerCrashed" in told
    spread.progress.unlink()
    with subprocess.Popen(command, **pipes) as second:  # type: ignore[call-overload]
        output = second.stdout
        assert output
        until(lambda: "waits for 2 nodes" in output.readline() or second.poll(), "the training to wait")
        cluster.add_node()
        second.communicate()
    assert second.returncode == 0
    assert [step for step, _ in steps(spread)] == [*range(1, 41)]


def test_two_nodes_train_as_one_process_does(cluster: RayCluster, tmp_path: Path):
    (alone,), (spread,) = (jobs(tmp_path / name, ["sft"]) for name in ("one", "two"))
    folder = spread.progress.parent
    command = [sys.executable, "-m", "tests.tasks.runtime.ray_training", cluster.address, str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert {log.name for log in folder.glob("train*.log")} == {"train.log", "train-1.log"}
    run(alone.progress.parent / "job.json")
    assert_trained_alike(alone, spread)
