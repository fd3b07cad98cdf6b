"""DTO, end to end (arXiv 2505.21765): sample, probe, cut, finalize, prune, pair, SimPO, examine, report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.dto import Dto, LlmPruning
from reasoning.records import PairKind
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
    PruningInputs,
    build_pairs,
    finalize_traces,
    probe_prefixes,
    propose_removals,
    prune_traces,
    reestimate_crossings,
)
from tasks.steps.problems import decontaminate, filter_sources_by_prompt_length, load_sources
from tasks.steps.sampling import evaluate, sample_traces
from tasks.steps.training import train_sft, train_simpo

MAIN, UNSEEN = "the benchmark", "levels that no training has seen"
UNBOUNDED = 1e9
"""Nats: nothing is as surprising as that."""


class Curated(NamedTuple):
    """What curation made; the controls start from the same."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    scans: ArtifactRef
    finalized: ArtifactRef
    optimised: ArtifactRef
    """The finalized traces, pruned where the settings say so."""


@flow(name="dto", flow_run_name="dto-{settings.preset}-seed-{settings.seed}", persist_result=False)
def dto(settings: Dto) -> Path:
    """Returns the path of the report."""
    with RunContext("dto", settings.storage, settings.engine, prompt=settings.prompt) as ctx:
        return run_dto(ctx, settings)


def run_dto(ctx: RunContext, settings: Dto) -> Path:
    """The pipeline in a given workplace."""
    ctx.directory.save_settings(settings)
    write_report(ctx, settings, [build_seed_result(ctx, settings, run_experiment(ctx, settings))])
    return ctx.directory.report


def run_experiment(ctx: RunContext, settings: Dto) -> ExperimentResult:
    """Base, method and controls, trained and examined."""
    seed, controls, benchmark = settings.seed, settings.controls.trained, settings.benchmark
    benchmarks = {MAIN: benchmark.problems} | ({UNSEEN: benchmark.unseen} if benchmark.unseen else {})
    drawn = load_sources(ctx, settings.problems, benchmarks, seed)
    base = ctx.resources.model(settings.model)
    sources = filter_sources_by_prompt_length(ctx, drawn, [base], settings.max_prompt_tokens)
    problems, eval_sets = decontaminate(ctx, settings.decontamination, sources, seed), sources.eval_sets
    made = curate(ctx, settings, base, problems)
    pairs = _pairs(ctx, settings, made, made.optimised)
    method = train_simpo(ctx, model=made.base, pairs=pairs, training=settings.training, seed=seed)
    policies = [
        NamedModel("base", "base", made.base),
        NamedModel("dto", "method", method),
        *(NamedModel(name, "control", train_control(ctx, settings, made, pairs, name)) for name in controls),
    ]
    sets = {name: evaluate_all(ctx, settings, policies, experiment) for name, experiment in eval_sets.items()}
    sets[MAIN] += evaluate_untrained(ctx, settings, made.base, eval_sets[MAIN])
    return ExperimentResult(seed, base.digest, sets)


def curate(ctx: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef) -> Curated:
    """From problems to optimised traces."""
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
    reestimate_crossings(
        ctx, model=base, problems=problems, traces=traces, scans=scans, probing=settings.probing, seed=seed
    )
    finalized = finalize_traces(
        ctx, model=base, problems=problems, traces=traces, scans=scans, finalizing=settings.finalizing, seed=seed
    )
    made = Curated(base, problems, traces, scans, finalized, optimised=finalized)
    if settings.pruning.type == "none":
        return made
    return made._replace(optimised=_pruned(ctx, settings, made, settings.pruning.max_logprob_drop))


def _pruned(ctx: RunContext, settings: Dto, made: Curated, max_logprob_drop: float) -> ArtifactRef:
    inputs = PruningInputs(
        model=made.base,
        problems=made.problems,
        traces=made.traces,
        scans=made.scans,
        optimised=made.finalized,
    )
    proposals = None
    if isinstance(settings.pruning, LlmPruning):
        proposals = propose_removals(ctx, inputs=inputs, pruning=settings.pruning, llm=settings.llm)
    return prune_traces(
        ctx,
        inputs=inputs,
        proposals=proposals,
        max_logprob_drop=max_logprob_drop,
        probing=settings.probing,
        finalizing=settings.finalizing,
        seed=settings.seed,
    )


def _pairs(ctx: RunContext, settings: Dto, made: Curated, optimised: ArtifactRef) -> ArtifactRef:
    return build_pairs(
        ctx,
        model=made.base,
        problems=made.problems,
        traces=made.traces,
        optimised=optimised,
        pairing=settings.pairing,
        max_length=settings.training.max_length,
    )


def train_control(ctx: RunContext, settings: Dto, made: Curated, pairs: ArtifactRef, name: str) -> ArtifactRef:
    """Another training of the same base; see `conf.dto.Controls`. `pairs` are the method's."""
    if name == "sft":
        sft = settings.controls.sft(settings.training)
        rows = build_sft_rows(
            ctx, model=made.base, problems=made.problems, completions=made.optimised, max_length=sft.max_length
        )
        return train_sft(ctx, model=made.base, rows=rows, training=sft, seed=settings.seed)
    if name == "shortest-longest":
        pairs = contrast_pairs(
            ctx, model=made.base, problems=made.problems, traces=made.traces, max_length=settings.training.max_length
        )
    elif name == "paper-pairs":
        pairs = select_pairs(ctx, pairs=pairs, kind=PairKind.OPTIMISED)
    elif name == "probe-pruned":
        pairs = _pairs(ctx, settings, made, _pruned(ctx, settings, made, UNBOUNDED))
    else:
        pairs = _pairs(ctx, settings, made, made.finalized)
    return train_simpo(ctx, model=made.base, pairs=pairs, training=settings.training, seed=settings.seed)


def evaluate_all(
    ctx: RunContext, settings: Dto, policies: list[NamedModel], problems: ArtifactRef
) -> list[EvaluatedModel]:
    sampling, seed = settings.benchmark.sampling, settings.seed
    return [
        EvaluatedModel(*policy, evaluate(ctx, model=policy.model, problems=problems, sampling=sampling, seed=seed))
        for policy in policies
    ]


def evaluate_untrained(
    ctx: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef
) -> list[EvaluatedModel]:
    """The controls that need no training."""
    seed, sampling = settings.seed, settings.benchmark.sampling
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
        brief = add_instruction(ctx, problems=problems, instruction=settings.controls.fast_prompt)
        scores = evaluate(ctx, model=base, problems=brief, sampling=sampling, seed=seed)
        evaluated.append(EvaluatedModel("fast-prompt", "control", base, scores))
    return evaluated
