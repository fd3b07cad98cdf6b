"""Steps on shards of problems: what workers make is what one process makes; what they cost when they are lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from conf.dto import Dto
from conf.load import load
from flows.dto import run_dto
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from models.tiny_model import END
from tests.flows import test_cot_distillation_stack, test_dto_stack, test_long_short_stack
from tests.flows.inline_workers import InlineWorkers
from tests.flows.processes_of_runs import figures, stored
from tests.flows.world import STORIES, ScriptedRun, speak
from tests.services import REPOSITORY
from tests.waiting import until

SHARDS = ("engine.workers.kind=processes", "engine.workers.problems_per_shard=3")
HARD = [story.text for story in STORIES.values() if story.level == 4]
UNSTORED = {"prune-traces"}
"""Steps that need log-probs, which no store holds."""


def made_by(run: ScriptedRun) -> list[tuple]:
    """Of each step: its rows, by their digest, and the ledger's counts, but for the cost."""
    counts = [(entry.step, entry.artifact, entry.artifact.count) for entry in run.ctx.ledger]
    return [
        (step, ref.digest, ref.rows, count.rows_in, count.dropped, count.counts, count.cost_bounds)
        for step, ref, count in counts
        if count and step != "pair-models"  # its row says where the models lie
    ]


@pytest.mark.usefixtures("plain_steps")
@pytest.mark.parametrize(
    ("pipeline", "changes"),
    [
        (test_dto_stack.Run, ("controls.early_stop=true", "probing.search={type='binary',audited=0.5}")),
        (test_cot_distillation_stack.Run, ()),
        (test_long_short_stack.Run, ("one_model=true",)),
    ],
)
def test_shards_make_what_one_process_makes_from_the_same_samples(
    pipeline: Callable[..., ScriptedRun], changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Once the shards sample, and one process takes theirs from the store; once the other way round. Only what no
    store holds then needs a worker."""
    monkeypatch.setattr("tasks.runtime.placement.LocalWorkers", InlineWorkers)
    orders = {"shards first": (SHARDS, ()), "one process first": ((), SHARDS)}
    for name, order in orders.items():
        runs = []
        for number, workers in enumerate(order):
            store = f"storage.rollout_store=sqlite:///{tmp_path}/{name[:3]}.sqlite"
            InlineWorkers.calls = 0
            runs.append(pipeline(tmp_path / f"{name}-{number}", store, *changes, *workers))
        sampled, taken = runs
        assert made_by(sampled) == made_by(taken), name
        assert sampled.completions > taken.completions == 0
        if order[1]:
            steps = {entry.step for entry in taken.ctx.ledger}
            assert bool(InlineWorkers.calls) == bool(steps & UNSTORED)


def speak_wrongly_of_hard_stories(model: Checkpoint, request: Request, number: int) -> Completion:
    """No trace of a hard story ever crosses."""
    said = speak(model, request, number)
    is_hard = any(text in model.decode(request.prompt_ids) for text in HARD)
    return Completion(model.encode("0}." + END), True) if is_hard and len(said.token_ids) < 8 else said


@pytest.mark.usefixtures("plain_steps")
def test_a_shard_may_have_no_rows_of_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One problem in each shard. Those that nothing crosses for have no rows to finish or to prune."""
    monkeypatch.setattr("tasks.runtime.placement.LocalWorkers", InlineWorkers)
    made = []
    for name, workers in (("shards", (*SHARDS, "engine.workers.problems_per_shard=1")), ("whole", ())):
        shared = (f"storage.root={tmp_path}/{name}", f"storage.rollout_store=sqlite:///{tmp_path}/store.sqlite")
        settings = load(Dto, "tiny", (*test_dto_stack.SMALL, *shared, *workers))
        run = ScriptedRun("dto", settings, run_dto, lambda: ScriptedEngine(speak_wrongly_of_hard_stories))
        made.append(made_by(run))
    assert made[0] == made[1]
    finalized = next(step for step in made[0] if step[0] == "finalize-traces")
    assert 0 < finalized[2] < 24


def test_a_worker_process_that_is_killed_costs_nothing_that_was_finished(tmp_path: Path):
    """Two processes sample; one is killed with shards in hand, and what it had begun is sampled by others at once."""
    environment = {"PACED_HOLD": str(tmp_path / "hold"), "PACED_LOG": str(tmp_path / "log"), "PACED_SECONDS": "0.02"}
    (tmp_path / "log").touch()
    (tmp_path / "hold").touch()
    store = f"sqlite:///{tmp_path}/store.sqlite"
    shared = (f"storage.root={tmp_path}/runs", f"storage.rollout_store={store}")
    changes = (*shared, *SHARDS, "engine.workers.problems_per_shard=2")
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.flows.workers_run", *changes],
        cwd=REPOSITORY,
        env=os.environ | environment | {"PREFECT_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "notes").open("w"),
        text=True,
    )

    def sampled_by() -> list[int]:
        return [int(line) for line in (tmp_path / "log").read_text().split()]

    until(lambda: run.poll() or len([*tmp_path.glob("waits-*")]) == 2, "requests in hand of both processes")
    until(lambda: 0 < len(sampled_by()) == stored(store), "what was sampled to be stored")
    os.kill(int(next(tmp_path.glob("waits-*")).name.removeprefix("waits-")), signal.SIGKILL)
    (tmp_path / "hold").unlink()
    told = figures(run)
    assert (told["made"], told["warnings"]) == (test_dto_stack.EVERY_STEP, [])
    assert len(sampled_by()) == stored(store)
    assert "has gone (" in (tmp_path / "notes").read_text()
    until(lambda: not any(psutil.pid_exists(pid) for pid in {*sampled_by()}), "the workers to end")
