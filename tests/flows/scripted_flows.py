"""Flows with the scripted model for a real Prefect worker. While the file named by SCRIPTED_HOLD exists, sampling waits
and says so in a file beside it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from conf.dto import Dto
from conf.engine import Engine
from conf.multi_seed import MultiSeed
from flows.dto import run_dto
from flows.multi_seed import run_multi_seed
from flows.pipeline import pipeline
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from tasks.runtime.context import RunContext
from tests.flows.world import pretend_training, speak

HOLD = Path(os.environ.get("SCRIPTED_HOLD", "/none"))


def speak_or_wait(model: Checkpoint, request: Request, number: int) -> Completion:
    while HOLD.exists():
        HOLD.with_suffix(".waits").write_text(str(os.getpid()))
        time.sleep(0.05)
    return speak(model, request, number)


def run_scripted_dto(ctx: RunContext, settings: Dto) -> Path:
    return run_dto(ctx, settings)


def make_engine(_settings: Engine, _log: Path, before_start: Callable[[], None]) -> ScriptedEngine:
    before_start()
    return ScriptedEngine(speak_or_wait)


def run_scripted_seeds(ctx: RunContext, settings: MultiSeed) -> Path:
    return run_multi_seed(ctx, settings)


dto = pipeline(Dto, run_scripted_dto, make_engine=make_engine, trainer=pretend_training)
multi_seed = pipeline(MultiSeed, run_scripted_seeds, make_engine=make_engine, trainer=pretend_training)
