"""What the launcher does for each exit reason. Processes are scripted; test_launcher_stack.py runs real ones."""

from pathlib import Path
from typing import Any

import pytest

from models.training import launcher
from models.training.launcher import ExitReason, TrainerCrashed, TrainingFailed, TrainJob, train
from tests.models.training.jobs import job


def run_scripted(monkeypatch: pytest.MonkeyPatch, train_job: TrainJob, fits: int, reason: str = "") -> list[int]:
    """Trains with processes in which more than `fits` rows do not fit into memory; a job that fits ends with `reason`.
    Returns the rows per device of each process."""
    started: list[int] = []

    def scripted(job: TrainJob, *_: Any) -> tuple[int, str, str, int]:
        started.append(job.per_device_train_batch_size)
        if started[-1] > fits:
            return 1, ExitReason.OUT_OF_MEMORY, "", job.processes
        return (1, reason, "its last words", 1) if reason else (0, "", "", 1)

    monkeypatch.setattr(launcher, "_run", scripted)
    train(train_job, train_job.output.parent, lambda *_: None)
    return started


@pytest.mark.parametrize(
    ("rows", "of", "fits", "started"),
    [(8, 8, 4, [8, 4]), (8, 8, 1, [8, 4, 2, 1]), (6, 12, 3, [6, 3]), (3, 12, 2, [3, 1])],
)
def test_out_of_memory_halves_the_per_device_batch(
    rows: int, of: int, fits: int, started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_job = job(tmp_path, [], per_device_train_batch_size=rows, global_batch_size=of)
    assert run_scripted(monkeypatch, train_job, fits) == started


def test_out_of_memory_with_one_row_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TrainingFailed, match="lower its max_length"):
        run_scripted(monkeypatch, job(tmp_path, []), fits=0)


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        (ExitReason.NOT_FINITE, TrainingFailed, "lower its learning_rate"),
        (f"{ExitReason.GIVEN_UP}\nlower global_batch_size", TrainingFailed, "^lower global_batch_size$"),
        ("unknown", TrainerCrashed, "its last words"),
    ],
)
def test_each_exit_reason_has_its_message(
    reason: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(error, match=message):
        run_scripted(monkeypatch, job(tmp_path, []), fits=8, reason=reason)


def test_out_of_memory_halves_the_rows_that_each_process_had_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a batch of 32, each of eight processes has four rows at most, whatever the setting says."""
    monkeypatch.setattr(launcher, "visible_gpus", lambda: tuple("01234567"))
    train_job = job(tmp_path, [], per_device_train_batch_size=16, global_batch_size=32)
    assert run_scripted(monkeypatch, train_job, fits=1) == [16, 2, 1]


@pytest.mark.parametrize(
    ("gpus", "batch", "used"),
    [((), 32, ()), (("5",), 32, ("5",)), (("1", "3"), 32, ("1", "3")), (tuple("012345"), 32, tuple("0123"))],
)
def test_one_process_for_each_gpu_that_gets_as_many_rows(
    gpus: tuple[str, ...], batch: int, used: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launcher, "visible_gpus", lambda: gpus)
    train_job = job(tmp_path, [], global_batch_size=batch)
    assert train_job.processes == max(1, len(used))
    assert train_job.environment.get("CUDA_VISIBLE_DEVICES") == (",".join(used) or None)
    command = launcher._command(train_job, tmp_path / "job.json", launcher.NodeOfMany())[1:]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(len(used))]
    assert command == [*(several if len(used) > 1 else []), "-m", "models.training.train", str(tmp_path / "job.json")]
