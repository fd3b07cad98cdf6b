"""The trainer as a process of its own: a kill and a resumption, and an exit reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.training.launcher import TrainerCrashed, TrainingFailed, train
from models.training.train import last_complete_checkpoint, main
from tests.models.training.jobs import job, pairs

# Loaded only in the trainer's process: it dies once, right after its second checkpoint.
DYING = """
import os, signal, sys
from pathlib import Path
if sys.orig_argv[1:3] == ["-m", "models.training.train"]:
    import transformers
    save = transformers.Trainer._save_checkpoint
    def die_once(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 2 and not Path("FLAG").exists():
            Path("FLAG").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    transformers.Trainer._save_checkpoint = die_once
"""


def test_a_killed_training_resumes_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    main(job(complete, pairs(32), save_steps=1))
    train_job = job(killed, pairs(32), save_steps=1)
    (killed / "sitecustomize.py").write_text(DYING.replace("FLAG", str(killed / "flag")))
    monkeypatch.setenv("PYTHONPATH", str(killed))
    with pytest.raises(TrainerCrashed):
        train(train_job, killed, lambda *_: None)
    assert last_complete_checkpoint(train_job.work) == str(train_job.work / "checkpoint-2")
    received: list[int] = []
    figures = train(train_job, killed, lambda step, _: received.append(step))
    assert [line["step"] for line in figures if "loss" in line] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in train_job.progress.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]  # no step was taken twice
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (complete, killed))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


def test_a_non_finite_loss_stops_training(tmp_path: Path):
    with pytest.raises(TrainingFailed, match=r"lower its learning_rate"):
        train(job(tmp_path, pairs(32), learning_rate=1e30), tmp_path, lambda *_: None)
