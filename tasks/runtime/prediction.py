"""Predicts rows, tokens, seconds and prices of a step from earlier results, and says why a result is not in the cache.

Recipes and counts in, numbers out; no file is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from models.training.launcher import largest_divisor
from reasoning.records import StageCount
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.cache_index import VERSION, CachedResult, Path, RecipeChange, leaves, recipe_changes

INPUTS = "inputs"
"""Name of the inputs in a recipe, and of the grouped inputs of a step."""
ROLLOUT_BYTES = 4
"""Bytes that the rollout store takes per token."""
MOST_SETTINGS, LONGEST_VALUE = 3, 30
"""Changed settings that a reason lists, and characters of a value."""
MIN_FRESH = 0.5
"""A result is a better pilot where at least this share of its work was not taken from the store."""


class Certainty(StrEnum):
    """How sure a figure is, the surest first."""

    EXACT = "exact"
    ESTIMATE = "estimate"
    """From earlier results."""
    BOUND = "bound"
    """The settings allow no more."""
    UNKNOWN = "unknown"
    """There is no earlier result to go by; the value means nothing."""


class Figure(NamedTuple):
    """A number and how sure it is."""

    value: float
    certainty: Certainty = Certainty.EXACT

    def times(self, factor: float) -> Figure:
        """Nothing, for sure, where `factor` is 0."""
        return Figure(self.value * factor, self.certainty) if factor else Figure(0.0)

    def at_best(self, certainty: Certainty) -> Figure:
        """The same, no surer than `certainty`."""
        return Figure(self.value, max(self.certainty, certainty, key=list(Certainty).index))


ZERO = Figure(0.0)
UNKNOWN = Figure(0.0, Certainty.UNKNOWN)


def total(figures: Iterable[Figure]) -> Figure:
    """The sum of the known figures, as sure as the least sure of them; unknown only where none is known."""
    summed = list(figures)
    known = [figure for figure in summed if figure.certainty is not Certainty.UNKNOWN]
    result = UNKNOWN if summed and not known else Figure(sum(figure.value for figure in known))
    for figure in known:
        result = result.at_best(figure.certainty)
    return result


class ChangeKind(StrEnum):
    """What a difference between two recipes is about."""

    CODE = "code"
    DATA = "data"
    """An input artifact other than a model."""
    MODEL = "model"
    SAMPLES = "samples"
    """A number of samples. The rollout store keeps the samples that both have."""
    AMOUNT = "amount"
    """Another number that the work is proportional to."""
    SEED = "seed"
    SETTING = "setting"


KIND_OF_FIELD = {
    "samples": ChangeKind.SAMPLES,
    "max_steps": ChangeKind.AMOUNT,
    "num_train_epochs": ChangeKind.AMOUNT,
    "seed": ChangeKind.SEED,
}


class Input(NamedTuple):
    """An artifact that a step reads."""

    ref: ArtifactRef
    is_model: bool
    rows: Figure
    new_share: float | None = None
    """Share of its rows that no earlier run had; None where the artifact exists and its rows can be compared."""

    @property
    def is_planned(self) -> bool:
        return self.new_share is not None


class Prices(NamedTuple):
    """Prices of an auxiliary model per million tokens."""

    prompt: float
    generated: float


@dataclass(frozen=True)
class StepCall:
    """A step with its inputs, before it is run."""

    step: str
    kind: str
    """`tasks.runtime.caching.StepKind`."""
    recipe: Mapping[str, Any]
    inputs: Mapping[Path, Input]
    """By path in the recipe, in the order of the step's parameters."""
    prices: Prices | None = None
    """Where the step asks an auxiliary model."""

    @property
    def main_input(self) -> Path | None:
        """The input whose rows the work is proportional to: the last one that is no model."""
        return next((path for path in reversed(list(self.inputs)) if not self.inputs[path].is_model), None)

    @cached_property
    def values(self) -> dict[Path, Any]:
        """All settings and other values of the recipe, by path."""
        return dict(leaves(dict(self.recipe)))

    @property
    def rows(self) -> Figure:
        """Rows of the main input; 1 without one. `judging.problems` limits them."""
        rows = self.inputs[self.main_input].rows if self.main_input else Figure(1)
        return rows._replace(value=min(rows.value, _cap(self.values)))

    @property
    def has_fixed_steps(self) -> bool:
        """Whether the settings fix the number of steps, so that the work does not grow with the rows."""
        return any(path[-1] == "max_steps" for path in self.values)


def _cap(values: Mapping[Path, Any]) -> float:
    return next((value for path, value in values.items() if path[-2:] == ("judging", "problems")), math.inf)


def change_kind(call: StepCall, change: RecipeChange) -> ChangeKind:
    if change.path == VERSION:
        return ChangeKind.CODE
    if change.path in call.inputs:
        return ChangeKind.MODEL if call.inputs[change.path].is_model else ChangeKind.DATA
    return KIND_OF_FIELD.get(change.path[-1], ChangeKind.SETTING)


def _kinds(call: StepCall, result: CachedResult) -> list[ChangeKind]:
    return [change_kind(call, change) for change in recipe_changes(result.recipe, call.recipe)]


def reasons(call: StepCall, results: Sequence[CachedResult]) -> list[str]:
    """Why no result can be taken: how the call differs from the most similar of `results`, which come newest first."""
    if not results:
        return ["never made here"]
    changes = min((recipe_changes(result.recipe, call.recipe) for result in results), key=len)
    if not changes:
        return ["its result is missing or damaged"]
    changed = {change.path for change in changes}
    inputs = [_name(path) for path in call.inputs if path in changed]
    settings = [change for change in changes if change.path not in call.inputs and change.path != VERSION]
    found = ["the code changed"] * (len(inputs) + len(settings) < len(changes))
    found += [f"new input: {', '.join(inputs)}"] * bool(inputs)
    found += [f"{_name(c.path)} {_shown(c.before)} → {_shown(c.now)}" for c in settings[:MOST_SETTINGS]]
    return found + [f"{len(settings) - MOST_SETTINGS} more settings"] * (len(settings) > MOST_SETTINGS)


def _name(path: Path) -> str:
    """Dotted, without the names that group inputs."""
    return ".".join(name for name in path if name != INPUTS)


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, StrEnum) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def is_reusable(call: StepCall, result: CachedResult) -> bool:
    """Whether the store holds what `call` samples for the rows that `result` had: all else is equal."""
    return all(kind in (ChangeKind.DATA, ChangeKind.SAMPLES) for kind in _kinds(call, result))


def new_share(call: StepCall, results: Sequence[CachedResult], rows_of: Mapping[str, Collection[str]]) -> float:
    """Share of the step's work that no earlier run did.

    `rows_of`: digests of the rows of the main input, and of those of earlier results, by the artifacts' fingerprints.
    """
    reusable = [result for result in results if is_reusable(call, result)]
    if not reusable or call.kind == "training":
        return 1.0
    shares = {result.key: _held_samples(call, result) for result in reusable}
    main = call.inputs[call.main_input] if call.main_input else None
    if main is None or main.new_share is not None:
        return 1 - (1 - (main.new_share or 0.0 if main else 0.0)) * max(shares.values())
    held: dict[str, float] = {}
    for result in reusable:
        for row in rows_of.get(_main_input_of(call, result), ()):
            held[row] = max(held.get(row, 0.0), shares[result.key])
    rows = rows_of.get(main.ref.fingerprint(), ())
    return 1 - sum(held.get(row, 0.0) for row in rows) / len(rows) if rows else 1.0


def _held_samples(call: StepCall, result: CachedResult) -> float:
    """Share of the samples of a row that are in the store, where `result` had the row."""
    changes = [change for change in recipe_changes(result.recipe, call.recipe) if _is_samples(change)]
    return math.prod(min(1.0, change.before / change.now) for change in changes)


def _is_samples(change: RecipeChange) -> bool:
    return KIND_OF_FIELD.get(change.path[-1]) is ChangeKind.SAMPLES and _are_numbers(change)


def _are_numbers(change: RecipeChange) -> bool:
    return all(isinstance(value, int | float) and value for value in change[1:])


def _main_input_of(call: StepCall, result: CachedResult) -> str:
    """Fingerprint of the artifact that `result` has as its main input; empty without one."""
    return str(dict(leaves(dict(result.recipe))).get(call.main_input, "")) if call.main_input else ""


def main_inputs(call: StepCall, results: Iterable[CachedResult]) -> list[str]:
    """Fingerprints of the artifacts that earlier results have as their main input, in their order."""
    return list(dict.fromkeys(filter(None, (_main_input_of(call, result) for result in results))))


def fresh_share(count: StageCount) -> float:
    """Share of a result's work that was done for it, and not taken from the store."""
    if count.flops + count.reused_flops:
        return count.flops / (count.flops + count.reused_flops)
    if count.reused_completions:  # replies of an auxiliary model
        return max(0.0, 1 - count.reused_completions / max(1, count.rows_in))
    return 1.0


@dataclass(frozen=True)
class Pilot:
    """An earlier result of a step, from which a call is predicted."""

    count: StageCount
    rows: int
    input_rows: float
    """Rows of the input that the work was proportional to."""
    bytes: int
    """Size of its artifact; 0 where it is gone."""
    changes: Sequence[RecipeChange]
    """How the call differs from it."""


def choose_pilot(
    call: StepCall,
    results: Sequence[CachedResult],
    rows_of: Mapping[str, Collection[str]],
    sizes: Mapping[str, int],
    bytes_of: Mapping[str, int],
) -> Pilot | None:
    """The most similar of `results`, which come newest first; of equally similar ones the newest.

    `rows_of`: as in `new_share`. `sizes`, `bytes_of`: rows and bytes of artifacts by fingerprint.
    """
    own = set(rows_of.get(call.inputs[call.main_input].ref.fingerprint(), ())) if call.main_input else set[str]()
    usable = [result for result in results if result.artifact.count]
    if not usable:
        return None

    def distance(result: CachedResult) -> tuple[float, ...]:
        shared = own.intersection(rows_of.get(_main_input_of(call, result), ()))
        return _distance(call, result, len(shared))

    chosen = min(usable, key=distance)
    count = chosen.artifact.count
    assert count
    cap = _cap(dict(leaves(dict(chosen.recipe))))
    rows = sizes.get(_main_input_of(call, chosen), count.rows_in) if call.main_input else 1
    changes = recipe_changes(chosen.recipe, call.recipe)
    return Pilot(count, chosen.artifact.rows, min(rows, cap), bytes_of.get(chosen.fingerprint, 0), changes)


def _distance(call: StepCall, result: CachedResult, shared_rows: int) -> tuple[float, ...]:
    """Smaller for a result that says more about the call."""
    changes = recipe_changes(result.recipe, call.recipe)
    kinds = [change_kind(call, change) for change in changes]
    models = [change for change, kind in zip(changes, kinds, strict=True) if kind is ChangeKind.MODEL]
    other_kinds = sum(str(change.before).partition(":")[0] != str(change.now).partition(":")[0] for change in models)
    assert result.artifact.count
    is_mostly_reused = fresh_share(result.artifact.count) < MIN_FRESH
    return kinds.count(ChangeKind.SETTING), other_kinds, len(models), is_mostly_reused, -shared_rows


@dataclass(frozen=True)
class Prediction:
    """What a step will take in, make and cost."""

    rows_in: Figure = ZERO
    rows_out: Figure = ZERO
    tokens: Figure = ZERO
    """Generated by the run's own models."""
    llm_tokens: Figure = ZERO
    """Generated by an auxiliary model."""
    seconds: Figure = ZERO
    gpu_seconds: Figure = ZERO
    """Seconds in which the step has servers or a trainer, of each GPU of the node."""
    bytes: Figure = ZERO
    """Written to disk."""
    money: Figure = ZERO
    """Price of an auxiliary model."""


def predict(
    call: StepCall, pilot: Pilot | None, share: float, gpus: int = 0, checkpoint_bytes: Figure = UNKNOWN
) -> Prediction:
    """`share`: `new_share` of the call. `gpus`: of the node; servers and trainers are taken to be as much faster as
    `_speed` says. `checkpoint_bytes`: size of the model that a training writes."""
    if pilot is None:
        return _bounds(call, checkpoint_bytes)
    rows, count, is_training = _row_ratio(call, pilot), pilot.count, call.kind == "training"
    factor = _cost_factor(call, pilot, rows, share)

    def cost(amount: float) -> Figure:
        """Where the pilot took `amount`. A pilot that took all from the store tells nothing."""
        return UNKNOWN if share and not fresh_share(count) else factor.times(amount)

    def gpu_cost(amount: float) -> Figure:
        """A pilot without GPUs tells nothing about a node with some; those of earlier versions do not say."""
        return UNKNOWN if gpus and not count.gpus else cost(amount)

    speed = _speed(call, gpus) / _speed(call, count.gpus)
    busy = count.engine_busy + count.engine_idle
    uses_gpu = call.kind in ("sampling", "training") and call.prices is None
    rows_out = Figure(1) if is_training else rows.times(pilot.rows * _samples_per_row(pilot))
    written = checkpoint_bytes if is_training else rows_out.times(pilot.bytes / max(1, pilot.rows))
    tokens = cost(count.generated_tokens)
    return Prediction(
        rows_in=call.rows if count.rows_in == pilot.input_rows else rows.times(count.rows_in),
        rows_out=rows_out,
        tokens=ZERO if call.prices else tokens,
        llm_tokens=tokens if call.prices else ZERO,
        seconds=gpu_cost(count.seconds / speed) if uses_gpu else cost(count.seconds),
        gpu_seconds=gpu_cost(max(1, gpus) / speed * (count.seconds if uses_gpu else busy)),
        bytes=total([written, ZERO if call.prices else tokens.times(ROLLOUT_BYTES)]),
        money=cost(_money(call.prices, count)) if call.prices else ZERO,
    )


def _speed(call: StepCall, gpus: int) -> int:
    """How many times as fast as with one GPU a step is with `gpus` at best. GRPO trains on one; other trainings split a
    batch evenly."""
    if call.kind != "training":
        return max(1, gpus)
    batches = [value for path, value in call.values.items() if path[-1] == "global_batch_size"]
    return largest_divisor(batches[0], max(1, gpus)) if batches and not call.has_fixed_steps else 1


def _row_ratio(call: StepCall, pilot: Pilot) -> Figure:
    """Rows of the main input, relative to the pilot's."""
    if not pilot.input_rows:
        return UNKNOWN if call.rows.value else Figure(1)
    return call.rows.times(1 / pilot.input_rows).at_best(Certainty.ESTIMATE)


def _cost_factor(call: StepCall, pilot: Pilot, rows: Figure, share: float) -> Figure:
    """What the pilot's cost is multiplied by. The pilot is taken as if nothing had been in the store."""
    if share == 0:
        return Figure(0.0, Certainty.ESTIMATE)
    sized = [change for change in pilot.changes if change.path[-1] in KIND_OF_FIELD and _are_numbers(change)]
    amounts = [change.now / change.before for change in sized if change.path[-1] != "seed"]
    scale = Figure(1, Certainty.ESTIMATE) if call.has_fixed_steps else rows
    return scale.times(math.prod(amounts) * share / (fresh_share(pilot.count) or 1.0))


def _samples_per_row(pilot: Pilot) -> float:
    """Relative to the pilot's. Samples of probes and of endings do not change the number of rows."""
    changes = [change for change in pilot.changes if _is_sampling(change.path) and _are_numbers(change)]
    return math.prod(change.now / change.before for change in changes)


def _is_sampling(path: Path, field: str = "samples") -> bool:
    """Whether `path` is a field of a step's own setting `sampling`."""
    return path[-3:] == (INPUTS, "sampling", field)


def _money(prices: Prices, count: StageCount) -> float:
    """What the pilot's new replies cost at these prices. A step that also used the run's own models counts their
    tokens, too: there, what was paid tells more, which includes the price of reused replies."""
    if count.flops and count.money:
        return count.money * fresh_share(count)
    return (count.prompt_tokens * prices.prompt + count.generated_tokens * prices.generated) / 1e6


def _bounds(call: StepCall, checkpoint_bytes: Figure) -> Prediction:
    """What the settings alone say."""
    if call.kind == "training":
        tokens = UNKNOWN if call.has_fixed_steps else ZERO
        return Prediction(call.rows, Figure(1), tokens, ZERO, UNKNOWN, UNKNOWN, checkpoint_bytes)
    if call.kind == "data":
        return Prediction(call.rows, call.rows.at_best(Certainty.UNKNOWN), seconds=UNKNOWN, bytes=UNKNOWN)
    completions = _completions(call)
    rows_out = completions if completions.value else call.rows.at_best(Certainty.UNKNOWN)
    tokens = completions.times(next((v for path, v in call.values.items() if _is_sampling(path, "max_tokens")), 1))
    return Prediction(
        rows_in=call.rows,
        rows_out=rows_out,
        tokens=tokens if call.prices is None else ZERO,
        llm_tokens=tokens if call.prices else ZERO,
        seconds=UNKNOWN,
        gpu_seconds=UNKNOWN if call.prices is None else ZERO,
        bytes=UNKNOWN,
        money=UNKNOWN if call.prices else ZERO,
    )


def _completions(call: StepCall) -> Figure:
    """The most completions of a step that samples each row a number of times and does nothing else."""
    counts = [path for path in call.values if path[-1] == "samples"]
    has_turns = any("protocol" in path for path in call.values)
    if call.kind != "sampling" or has_turns or len(counts) != 1 or not _is_sampling(counts[0]):
        return UNKNOWN
    return call.rows.times(call.values[counts[0]]).at_best(Certainty.BOUND)
