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

    def scripted(job: TrainJob, *_: Any) -> tuple[int, str, str]:
        started.append(job.per_device_train_batch_size)
        if started[-1] > fits:
            return 1, ExitReason.OUT_OF_MEMORY, ""
        return (1, reason, "its last words") if reason else (0, "", "")

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
