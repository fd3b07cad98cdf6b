"""Evaluates the models of a run, and reference models, on its benchmarks.

It knows models by name and evaluation sets. It must not know how a model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from conf.errors import ReadableError
from conf.evaluation import Evaluated
from tasks.reports.seed_results import EvaluatedModel, NamedModel
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.sampling import evaluate


class UnfitReference(ReadableError):
    """A reference model that this run cannot serve."""


def reference_models(ctx: RunContext, settings: Evaluated) -> list[NamedModel]:
    """The finished models that the run's own are compared with. Raises UnfitReference."""
    return [_reference(ctx, name) for name in settings.evaluation.references]


def _reference(ctx: RunContext, name: str) -> NamedModel:
    model = ctx.resources.model(name)
    checkpoint, needed = ctx.resources.checkpoint(model), ctx.resources.engine_settings.max_model_len
    limit = checkpoint.config.get("max_position_embeddings")
    if isinstance(limit, int) and limit < needed:
        raise UnfitReference(
            f"evaluation.references: {name} holds {limit} tokens (max_position_embeddings), fewer than "
            f"engine.max_model_len ({needed}); lower the latter, or leave the model out"
        )
    if not checkpoint.marks_thinking:
        ctx.warn(
            f"{name} has no thinking tags: as a reference it is prompted without them, and its whole reply is graded"
        )
    return NamedModel(name, "reference", model, answers_directly=not checkpoint.marks_thinking)


def evaluate_all(
    ctx: RunContext,
    settings: Evaluated,
    models: Sequence[NamedModel],
    eval_sets: Mapping[str, ArtifactRef],
    seed: int,
) -> dict[str, list[EvaluatedModel]]:
    """Each model's scores on each evaluation set, model by model, so that an engine loads each once."""
    sets: dict[str, list[EvaluatedModel]] = {name: [] for name in eval_sets}
    for model, (name, eval_set) in product(models, eval_sets.items()):
        scores = evaluate(
            ctx,
            model=model.model.called(model.name),
            problems=eval_set,
            sampling=settings.sampling_on(name),
            seed=seed,
            answers_directly=model.answers_directly,
        )
        found = EvaluatedModel(model.name, model.role, model.model, scores, answers_directly=model.answers_directly)
        sets[name].append(found)
    return sets
