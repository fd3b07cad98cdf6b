"""`brevity plan`: what a run would do and cost, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from rich.filesize import decimal
from rich.table import Table

from conf.base import Settings
from conf.errors import ReadableError
from conf.multi_seed import MultiSeed, experiment
from flows import cot_distillation, dto, long_short, markers, multi_seed, tiny_model, tiny_vision_model
from flows.needs import TRAININGS, llms, model_names, trains_beside_servers
from flows.pipeline import open_run
from models.checkpoints.checkpoint import found_checkpoint, is_on_hub
from models.checkpoints.files import CheckpointError
from models.inference.devices import TooFewGpus, beside_trainer, described, replica_gpus, visible_gpus
from models.training.launcher import largest_divisor
from tasks.reports.layout import console, plain
from tasks.reports.multi_seed import load_earlier_results
from tasks.runtime.context import RunContext
from tasks.runtime.planning import PlannedStep, Planner, StepState
from tasks.runtime.prediction import ZERO, Certainty, Figure, total

SIGNS = {Certainty.EXACT: "", Certainty.ESTIMATE: "≈ ", Certainty.BOUND: "≤ "}


class CannotPlan(ReadableError):
    """A plan needs something that is not here."""


def print_plan(settings: Settings, gpus: int | None = None) -> None:
    """Prints each step of a run and the totals. `gpus`: of the node that will run, if it is not this one. Raises
    CannotPlan, TooFewGpus, and what reading the problems raises."""
    names = visible_gpus() if gpus is None else tuple(map(str, range(gpus)))
    try:
        node = _node(experiment(settings), names)
    except TooFewGpus:
        if names or gpus is not None:
            raise
        node = "not this machine, which has no GPU: say how many the node has with --gpus"
    steps = plan(settings, len(names))
    console().print(_table(steps))
    console().print(_totals(settings, steps, node))


def plan(settings: Any, gpus: int = 0) -> list[PlannedStep]:
    """The steps of a run in order, on a node with `gpus`. Starts no engine and no trainer; data steps are run and their
    results kept."""
    _validate_models_are_here(settings)
    planner = Planner(experiment(settings).storage.root, gpus)
    with (
        TemporaryDirectory() as folder,
        open_run(settings, make_engine=_refuse, trainer=_refuse, run_step=planner.run_step, folder=Path(folder)) as ctx,
    ):
        BODIES[settings.pipeline](ctx, settings)
    return planner.steps


def _validate_models_are_here(settings: Settings) -> None:
    """Raises CannotPlan for a model that would have to be downloaded: cache keys depend on its weights."""
    for name in filter(is_on_hub, model_names(experiment(settings))):
        try:
            found_checkpoint(name, local_only=True)
        except CheckpointError:
            raise CannotPlan(
                f"{name} is not complete on this machine, and cache keys depend on its weights; "
                f"`brevity check-model {name}` downloads it"
            ) from None


def _refuse(*_: Any) -> NoReturn:
    raise AssertionError("a plan starts no engine and no trainer")


def _run_seeds(ctx: RunContext, settings: MultiSeed) -> None:
    earlier = load_earlier_results(ctx, settings)
    for seed in settings.seeds:
        if seed not in earlier:
            multi_seed.run_experiment(ctx, settings.of.model_copy(update={"seed": seed}))


BODIES: Mapping[str, Callable[[RunContext, Any], object]] = {
    "cot-distillation": cot_distillation.run_experiment,
    "dto": dto.run_experiment,
    "long-short": long_short.run_experiment,
    "markers": markers.count_openers,
    "multi-seed": _run_seeds,
    "tiny-model": tiny_model.train_and_probe,
    "tiny-vision-model": tiny_vision_model.train_and_look,
}
"""The steps of each pipeline, without its report."""


def _table(steps: Sequence[PlannedStep]) -> Table:
    table = Table()
    for name in ("step", "cached, or why not"):
        table.add_column(name, overflow="fold")
    for name in ("rows in", "tokens to generate", "seconds"):
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(*map(plain, _row(step)))
    return table


def _row(step: PlannedStep) -> list[str]:
    why = "; ".join(step.reasons)
    state = step.state.value if step.state is StepState.CACHED and not why else f"{step.state.value}: {why}"
    told, costs = step.predicted, step.state is StepState.TO_RUN
    tokens, seconds = _number(told.llm_tokens if told.tokens == ZERO else told.tokens), _seconds(told.seconds)
    return [step.name, state, _number(told.rows_in), tokens if costs else "", seconds if costs else ""]


def _node(run: Any, gpus: Sequence[str]) -> str:
    """Where models are served and trained. Raises TooFewGpus."""
    served = described(replica_gpus(run.engine, gpus), run.engine.servers_per_gpu)
    batches = {name: how.global_batch_size for name in TRAININGS if (how := getattr(run, name, None))}
    trained = [f"[{name}] in {largest_divisor(batch, len(gpus))} processes" for name, batch in batches.items() if gpus]
    if trains_beside_servers(run) and gpus:
        split = beside_trainer(gpus)
        replica_gpus(run.engine, split.servers)
        trained.append(f"[rl] on GPU {split.trainer[0]}, its servers on {', '.join(split.servers)}")
    return "; ".join([served, *trained])


def _totals(settings: Settings, steps: Sequence[PlannedStep], node: str) -> Table:
    counted = {state: sum(step.state is state for step in steps) for state in StepState}
    table = Table("total", "")
    table.add_row("node", plain(node))
    table.add_row("steps", ", ".join(f"{count} {state}" for state, count in counted.items()))
    for name, value in _sums(settings, steps).items():
        table.add_row(plain(name), plain(value))
    return table


def _sums(settings: Settings, steps: Sequence[PlannedStep]) -> dict[str, str]:
    told = [step.predicted for step in steps if step.state is StepState.TO_RUN]
    rows = {
        "tokens to generate": _sum([one.tokens for one in told], _number),
        "hours": _sum([one.seconds.times(1 / 3600) for one in told], _hours),
        "GPU-hours": _sum([one.gpu_seconds.times(1 / 3600) for one in told], _hours),
        "disk to be written": _sum([one.bytes for one in told], _size),
    }
    if llms(settings):
        rows["tokens of the auxiliary model"] = _sum([one.llm_tokens for one in told], _number)
        rows["price of the auxiliary model"] = _sum([one.money for one in told], _price)
    return rows


def _sum(figures: Sequence[Figure], shown: Callable[[Figure], str]) -> str:
    """The sum of what is known, and the number of steps of which nothing is."""
    unknown, known = sum(figure.certainty is Certainty.UNKNOWN for figure in figures), shown(total(figures))
    if not unknown:
        return known
    more = f"{unknown} {'step' if unknown == 1 else 'steps'} unknown: no earlier result to go by"
    return f"{known} (and {more})" if total(figures).value else f"unknown ({more})"


def _signed(figure: Figure, text: str) -> str:
    return "unknown" if figure.certainty is Certainty.UNKNOWN else f"{SIGNS[figure.certainty]}{text}"


def _number(figure: Figure) -> str:
    return _signed(figure, f"{figure.value:,.0f}")


def _seconds(figure: Figure) -> str:
    return _signed(figure, f"{figure.value:,.{1 if figure.value < 10 else 0}f}")


def _hours(figure: Figure) -> str:
    return _signed(figure, f"{figure.value:,.2f}")


def _size(figure: Figure) -> str:
    return _signed(figure, decimal(round(figure.value)))


def _price(figure: Figure) -> str:
    return _signed(figure, f"{figure.value:,.4g}")
