"""DTO, end to end (arXiv 2505.21765): sample, probe, cut, finalize, prune, pair, SimPO, evaluate, report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from conf.dto import Dto, LlmPruning
from flows.evaluation import evaluate_all, reference_models
from flows.pipeline import pipeline
from reasoning.records import PairKind
from tasks.reports.page.of_dto import DtoArtifacts, dto_views
from tasks.reports.page.run_page import write_run_page
from tasks.reports.report import write_report
from tasks.reports.seed_results import EvaluatedModel, ExperimentResult, NamedModel, build_seed_result
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import (
    EarlyStopInputs,
    add_instruction,
    build_sft_rows,
    contrast_pairs,
    evaluate_early_stop,
    select_pairs,
)
from tasks.steps.dto import (
    build_pairs,
    finalize_traces,
    probe_prefixes,
    reestimate_crossings,
)
from tasks.steps.problems import decontaminate, filter_sources_by_prompt_length, load_sources
from tasks.steps.pruning import PruningInputs, propose_removals, prune_traces
from tasks.steps.sampling import evaluate, sample_traces
from tasks.steps.training import train_sft, train_simpo

UNBOUNDED = 1e9
"""A `max_logprob_drop` in nats that no token exceeds: pruning then ignores naturalness."""


class Curated(NamedTuple):
    """Artifacts of the curation. Method and controls share them."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    scans: ArtifactRef
    estimates: ArtifactRef
    """Fresh estimates at the crossings."""
    finalized: ArtifactRef
    optimised: ArtifactRef
    """The finalized traces, pruned where the settings say so."""
    proposals: ArtifactRef | None = None
    """Removals that a language model proposed."""


def run_dto(ctx: RunContext, settings: Dto) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the report."""
    ctx.directory.save_settings(settings)
    result = run_experiment(ctx, settings)
    report = write_report(ctx, settings, [build_seed_result(ctx, settings, result)])
    write_run_page(ctx, settings, report, result)
    return ctx.directory.report


def run_experiment(ctx: RunContext, settings: Dto) -> ExperimentResult:
    """Trains method and controls, and evaluates them and the base."""
    seed, controls, main = settings.seed, settings.controls.trained, settings.benchmark.name
    loaded = load_sources(ctx, settings.problems, settings.eval_sets, seed)
    base, references = ctx.resources.model(settings.model), reference_models(ctx, settings)
    room, others = settings.max_prompt_tokens, [one.model for one in references]
    sources = filter_sources_by_prompt_length(ctx, loaded, [base], room, references=others)
    problems, eval_sets = decontaminate(ctx, settings.decontamination, sources, seed), sources.eval_sets
    curated = curate(ctx, settings, base, problems)
    pairs = pair_with_originals(ctx, settings, curated, curated.optimised)
    method = train_simpo(ctx, model=curated.base, pairs=pairs, training=settings.training, seed=seed)
    policies = [
        NamedModel("base", "base", curated.base),
        NamedModel("dto", "method", method),
        *(NamedModel(name, "control", train_control(ctx, settings, curated, pairs, name)) for name in controls),
    ]
    sets = evaluate_all(ctx, settings, [*policies, *references], eval_sets, seed)
    sets[main] += evaluate_untrained(ctx, settings, curated.base, eval_sets[main])
    views = partial(dto_views, ctx, _for_the_page(settings, curated, pairs))
    return ExperimentResult(seed, base.digest, sets, problems=eval_sets, views=views)


def curate(ctx: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef) -> Curated:
    """Samples traces of the problems and optimises them."""
    seed = settings.seed
    traces = sample_traces(ctx, model=base, problems=problems, sampling=settings.sampling, seed=seed)
    scans = probe_prefixes(
        ctx,
        model=base,
        problems=problems,
        traces=traces,
        segmentation=settings.segmentation,
        probing=settings.probing,
        seed=seed,
    )
    estimates = reestimate_crossings(
        ctx,
        model=base,
        problems=problems,
        traces=traces,
        scans=scans,
        probing=settings.probing,
        share=settings.reestimated,
        seed=seed,
    )
    finalized = finalize_traces(
        ctx, model=base, problems=problems, traces=traces, scans=scans, finalizing=settings.finalizing, seed=seed
    )
    curated = Curated(base, problems, traces, scans, estimates, finalized, optimised=finalized)
    if settings.pruning.type == "none":
        return curated
    if isinstance(settings.pruning, LlmPruning):
        inputs = _pruning_inputs(curated)
        proposals = propose_removals(ctx, inputs=inputs, pruning=settings.pruning, llm=settings.llm)
        curated = curated._replace(proposals=proposals)
    return curated._replace(optimised=_pruned(ctx, settings, curated, settings.pruning.max_logprob_drop))


def _for_the_page(settings: Dto, curated: Curated, pairs: ArtifactRef) -> DtoArtifacts:
    return DtoArtifacts(
        base=curated.base,
        problems=curated.problems,
        traces=curated.traces,
        scans=curated.scans,
        estimates=curated.estimates,
        optimised=curated.optimised,
        proposals=curated.proposals,
        is_pruned=settings.pruning.type != "none",
        pairs=pairs,
        rejected=settings.pairing.rejected,
        threshold=settings.probing.threshold,
    )


def _pruning_inputs(curated: Curated) -> PruningInputs:
    return PruningInputs(
        model=curated.base,
        problems=curated.problems,
        traces=curated.traces,
        scans=curated.scans,
        finalized=curated.finalized,
    )


def _pruned(ctx: RunContext, settings: Dto, curated: Curated, max_logprob_drop: float) -> ArtifactRef:
    return prune_traces(
        ctx,
        inputs=_pruning_inputs(curated),
        proposals=curated.proposals,
        max_logprob_drop=max_logprob_drop,
        probing=settings.probing,
        finalizing=settings.finalizing,
        seed=settings.seed,
    )


def pair_with_originals(ctx: RunContext, settings: Dto, curated: Curated, optimised: ArtifactRef) -> ArtifactRef:
    """Preference pairs of optimised traces with their originals, by the settings."""
    return build_pairs(
        ctx,
        model=curated.base,
        problems=curated.problems,
        traces=curated.traces,
        optimised=optimised,
        pairing=settings.pairing,
        max_length=settings.training.max_length,
    )


def train_control(ctx: RunContext, settings: Dto, curated: Curated, pairs: ArtifactRef, name: str) -> ArtifactRef:
    """Trains the control `name` (`conf.dto.Controls`) from the same base. `pairs`: the method's pairs."""
    if name == "sft":
        sft = settings.controls.sft(settings.training)
        rows = build_sft_rows(
            ctx, model=curated.base, problems=curated.problems, completions=curated.optimised, max_length=sft.max_length
        )
        return train_sft(ctx, model=curated.base, rows=rows, training=sft, seed=settings.seed)
    if name == "shortest-longest":
        pairs = contrast_pairs(
            ctx,
            model=curated.base,
            problems=curated.problems,
            traces=curated.traces,
            max_length=settings.training.max_length,
        )
    elif name == "paper-pairs":
        pairs = select_pairs(ctx, pairs=pairs, kind=PairKind.OPTIMISED)
    elif name == "probe-pruned":
        pairs = pair_with_originals(ctx, settings, curated, _pruned(ctx, settings, curated, UNBOUNDED))
    else:
        pairs = pair_with_originals(ctx, settings, curated, curated.finalized)
    return train_simpo(ctx, model=curated.base, pairs=pairs, training=settings.training, seed=settings.seed)


def evaluate_untrained(
    ctx: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef
) -> list[EvaluatedModel]:
    """Evaluates the controls that need no training."""
    seed, sampling = settings.seed, settings.sampling_on(settings.benchmark.name)
    evaluated = []
    if settings.controls.early_stop:
        scores = evaluate_early_stop(
            ctx,
            inputs=EarlyStopInputs(
                model=base,
                problems=problems,
                sampling=sampling,
                segmentation=settings.segmentation,
                probing=settings.probing,
                finalizing=settings.finalizing,
                seed=seed,
            ),
        )
        evaluated.append(EvaluatedModel("early-stop", "control", base, scores, independent=False))
    if settings.controls.fast_prompt:
        instructed = add_instruction(ctx, problems=problems, instruction=settings.controls.fast_prompt)
        scores = evaluate(ctx, model=base, problems=instructed, sampling=sampling, seed=seed)
        evaluated.append(EvaluatedModel("fast-prompt", "control", base, scores))
    return evaluated


dto = pipeline(Dto, run_dto)
