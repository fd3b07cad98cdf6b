"""Evaluates the models of a run, and reference models, on its benchmarks.

It knows models by name and evaluation sets. It must not know how a model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from conf.evaluation import Evaluated
from tasks.reports.seed_results import EvaluatedModel, NamedModel
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.sampling import evaluate


def reference_models(ctx: RunContext, settings: Evaluated) -> list[NamedModel]:
    """The finished models that the run's own are compared with."""
    return [NamedModel(name, "reference", ctx.resources.model(name)) for name in settings.evaluation.references]


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
        )
        sets[name].append(EvaluatedModel(*model, scores))
    return sets
