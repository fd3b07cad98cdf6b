"""Training in two processes against one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conf.training import Lora
from models.checkpoints.adapters import ADAPTER_CONFIG
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.processes import free_port
from models.training.launcher import TrainJob
from models.training.train import last_complete_checkpoint, run
from models.training.weights import load_model
from tests.models.training.jobs import job


def rows(method: str, count: int = 24) -> list[dict[str, Any]]:
    """Rows of different lengths."""
    tiny = Checkpoint.open(TINY_MODEL)
    made = []
    for index in range(count):
        prompt = tiny.encode(f"<|user|>Ann has {index} coins.<|assistant|><think>\n").tolist()
        right = tiny.encode("It is so. " * (index % 5 + 1) + f"</think>\nThe answer is {index}.").tolist()
        wrong = tiny.encode("Wait, it is not. " * (index % 3 + 3) + f"</think>\nThe answer is {index + 1}.").tolist()
        sides = {"completion_ids": right} if method == "sft" else {"chosen_ids": right, "rejected_ids": wrong}
        made.append({"prompt_ids": prompt} | sides)
    return made


def jobs(folder: Path, names: Sequence[str], count: int = 24, **changes: Any) -> list[TrainJob]:
    """Three steps of eight rows, in forward passes of at most three. A name that ends in `-lora` trains adapters; one
    that ends in `-merged` merges them."""
    folder.mkdir(parents=True)
    made = []
    for name in names:
        method, _, adapters = name.partition("-")
        more = {"method": method, "per_device_train_batch_size": 3, "learning_rate": 1e-4, "save_steps": 1} | changes
        more |= {"lora": Lora(r=4), "base_model": "tiny" if adapters == "lora" else ""} if adapters else {}
        made.append(job(folder / name, rows(method, count), **more))
        (folder / name / "job.json").write_text(made[-1].model_dump_json())
    return made


def in_two_processes(done: Sequence[TrainJob], **environment: str) -> subprocess.CompletedProcess[bytes]:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m"]
    files = [str(each.progress.parent / "job.json") for each in done]
    command = [sys.executable, *launch, "tests.models.training.run_jobs", *files]
    return subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def steps(done: TrainJob) -> list[tuple[int, float]]:
    """Number and loss of each logged step."""
    lines = [json.loads(line) for line in done.progress.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def weights(done: TrainJob) -> dict[str, Any]:
    """Those that a job has left, adapters merged."""
    model = load_model(done.model, done.output) if done.base_model else load_model(done.output)
    return model.state_dict()


def assert_trained_alike(one: TrainJob, two: TrainJob) -> None:
    losses = [dict(steps(done)) for done in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), one.method
    before, first, second = load_model(TINY_MODEL).state_dict(), weights(one), weights(two)
    assert set(first) == set(second)
    moved = max(float((first[name] - before[name]).abs().max()) for name in first)
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < 0.002 * moved, (one.method, apart, moved)
    name = ADAPTER_CONFIG if one.base_model else "config.json"
    assert json.loads((one.output / name).read_text()) == json.loads((two.output / name).read_text())


def test_two_processes_train_as_one_does(tmp_path: Path):
    """Each with the whole model, or each with a part of it, also where both were killed in the second step."""
    names = ("sft", "dpo", "simpo", "sft-lora", "dpo-merged")
    alone, whole = jobs(tmp_path / "one", names), jobs(tmp_path / "two", names[:3])
    sharded = jobs(tmp_path / "fsdp", names, fsdp=True)
    killed = sharded[2]
    assert in_two_processes([killed], KILL_AT="2").returncode
    assert last_complete_checkpoint(killed.work, sharded=True) == str(killed.work / "checkpoint-1")
    # Two rows are left over: they are left out, and none is repeated in their place.
    alone += jobs(tmp_path / "one" / "even", ["sft"], shuffle=False)
    uneven = jobs(tmp_path / "two" / "uneven", ["sft"], count=26, shuffle=False)
    assert in_two_processes([*whole, *uneven, *sharded]).returncode == 0
    assert all((done.work / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir() for done in sharded)
    assert last_complete_checkpoint(alone[0].work, sharded=True) is None
    assert [step for step, _ in steps(killed)] == [1, 2, 2, 3]
    for one in alone:
        run(one.progress.parent / "job.json")
    for one, two in zip([*alone[:3], *alone], [*whole, *sharded, *uneven], strict=True):
        assert_trained_alike(one, two)
