"""Training in two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.processes import free_port
from models.training.launcher import TrainJob
from models.training.train import run
from tests.models.training.jobs import job

METHODS = ("sft", "dpo", "simpo")


def rows(method: str) -> list[dict[str, Any]]:
    """24 rows of different lengths."""
    tiny = Checkpoint.open(TINY_MODEL)
    made = []
    for index in range(24):
        prompt = tiny.encode(f"<|user|>Ann has {index} coins.<|assistant|><think>\n").tolist()
        right = tiny.encode("It is so. " * (index % 5 + 1) + f"</think>\nThe answer is {index}.").tolist()
        wrong = tiny.encode("Wait, it is not. " * (index % 3 + 3) + f"</think>\nThe answer is {index + 1}.").tolist()
        sides = {"completion_ids": right} if method == "sft" else {"chosen_ids": right, "rejected_ids": wrong}
        made.append({"prompt_ids": prompt} | sides)
    return made


def jobs(folder: Path) -> list[TrainJob]:
    """Three steps of eight rows, in forward passes of at most three."""
    made = []
    for method in METHODS:
        changes = {"method": method, "per_device_train_batch_size": 3, "learning_rate": 1e-4}
        made.append(job(folder / method, rows(method), **changes))
        (folder / method / "job.json").write_text(made[-1].model_dump_json())
    return made


def losses(done: TrainJob) -> list[float]:
    lines = [json.loads(line) for line in done.progress.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_train_as_one_does(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, together = jobs(tmp_path / "one"), jobs(tmp_path / "two")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m"]
    files = [str(done.progress.parent / "job.json") for done in together]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, "tests.models.training.run_jobs", *files]
    subprocess.run(command, check=True, env=environment)
    for one, two in zip(alone, together, strict=True):
        run(one.progress.parent / "job.json")
        assert losses(two) == pytest.approx(losses(one), rel=1e-4), one.method
        before, first, second = (
            load_file(folder / "model.safetensors") for folder in (TINY_MODEL, one.output, two.output)
        )
        moved = max(float((first[name] - before[name]).abs().max()) for name in first)
        apart = max(float((first[name] - second[name]).abs().max()) for name in first)
        assert apart < 0.002 * moved, (one.method, apart, moved)
