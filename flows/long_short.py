"""Long⊗Short, end to end (arXiv 2505.11827): sample, chunk, value, cold start of two models, alternating RL."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.long_short import LlmChunker, LongShort, Who
from reasoning.dialogue import Speaker
from tasks.reports.model_pair import save_model_pair
from tasks.reports.report import write_report
from tasks.reports.seed_results import EvaluatedModel, ExperimentResult, NamedModel, ReportTable, build_seed_result
from tasks.reports.tables import thought_table
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import EarlyStopInputs, evaluate_early_stop
from tasks.steps.dialogues import evaluate_dialogues, pair_models, score_dialogues
from tasks.steps.distillation import select_traces
from tasks.steps.problems import decontaminate, filter_sources_by_prompt_length, load_sources
from tasks.steps.reinforcement import ReinforcementInputs, reinforce
from tasks.steps.sampling import evaluate, sample_traces
from tasks.steps.thoughts import (
    build_cold_start_dialogues,
    build_turn_sft_rows,
    chunk_by_llm,
    chunk_by_markers,
    value_thoughts,
)
from tasks.steps.training import train_sft

ROUNDS_APART = 1_000_000
"""Between the seeds of two rounds."""


class Two(NamedTuple):
    """The models that talk with each other, as they are after a phase."""

    name: str
    long: ArtifactRef
    short: ArtifactRef


@flow(name="long-short", flow_run_name="long-short-{settings.preset}-seed-{settings.seed}", persist_result=False)
def long_short(settings: LongShort) -> Path:
    """Returns the path of the report."""
    with RunContext("long-short", settings.storage, settings.engine, prompt=settings.prompt) as ctx:
        return run_long_short(ctx, settings)


def run_long_short(ctx: RunContext, settings: LongShort) -> Path:
    """The pipeline in a given workplace."""
    ctx.directory.save_settings(settings)
    experiment = run_experiment(ctx, settings)
    write_report(ctx, settings, [build_seed_result(ctx, settings, experiment)])
    save_model_pair(ctx, experiment)
    return ctx.directory.report


def run_experiment(ctx: RunContext, settings: LongShort) -> ExperimentResult:
    """Base, cold start, the two models after each round, and the controls, examined."""
    seed, sampling = settings.seed, settings.benchmark_sampling
    drawn = load_sources(ctx, settings.problems, settings.benchmarks, seed)
    base = ctx.resources.model(settings.model)
    thinker = ctx.resources.model(settings.teacher) if settings.teacher else base
    readers = [base] if thinker is base else [base, thinker]
    sources = filter_sources_by_prompt_length(ctx, drawn, readers, settings.max_prompt_tokens, settings.protocol.roles)
    problems, eval_sets = decontaminate(ctx, settings.decontamination, sources, seed), sources.eval_sets
    started, thoughts = cold_start(ctx, settings, base, thinker, problems)
    phases = [started]
    for number, who in enumerate(settings.rl.rounds, start=1):
        phases.append(play_round(ctx, settings, problems, phases[-1], number, who))
    singles = [NamedModel("teacher" if settings.teacher else "base", "base", thinker)]
    if settings.one_model:
        singles.append(NamedModel("one model", "control", reinforce_alone(ctx, settings, base, problems)))
    sets: dict[str, list[EvaluatedModel]] = {name: [] for name in eval_sets}
    for policy, (name, experiment) in product(singles, eval_sets.items()):
        scores = evaluate(ctx, model=policy.model, problems=experiment, sampling=sampling, seed=seed)
        sets[name].append(EvaluatedModel(*policy, scores))
    main, states = next(iter(eval_sets)), {}
    for two in phases:
        role, pair = "method" if two is phases[-1] else "control", pair_models(ctx, long=two.long, short=two.short)
        for name, experiment in eval_sets.items():
            spoken = evaluate_dialogues(
                ctx,
                long=two.long,
                short=two.short,
                problems=experiment,
                protocol=settings.protocol,
                sampling=sampling,
                seed=seed,
            )
            scores = score_dialogues(ctx, problems=experiment, conversations=spoken)
            sets[name].append(EvaluatedModel(two.name, role, pair, scores))
            if name == main:
                states[two.name] = spoken
    sets[main] += stopped_early(ctx, settings, thinker, eval_sets[main])
    return ExperimentResult(seed, base.digest, sets, [thoughts], dialogues=states)


def cold_start(
    ctx: RunContext, settings: LongShort, base: ArtifactRef, thinker: ArtifactRef, problems: ArtifactRef
) -> tuple[Two, ReportTable]:
    """Two models from one base: one has learnt the important turns of the thinker's traces, one the others; and a table
    of those."""
    seed = settings.seed
    drawn = sample_traces(ctx, model=thinker, problems=problems, sampling=settings.sampling, seed=seed)
    traces = select_traces(ctx, traces=drawn, selection=settings.selection)
    chunked = chunk(ctx, settings, thinker, problems, traces)
    values = value_thoughts(
        ctx, model=thinker, problems=problems, traces=traces, chunked=chunked, rollouts=settings.rollouts, seed=seed
    )
    rehearsals = build_cold_start_dialogues(
        ctx,
        model=thinker,
        traces=traces,
        values=values,
        importance=settings.importance,
        max_rounds=settings.protocol.max_rounds,
    )
    trained = [
        train_sft(
            ctx,
            model=base,
            training=settings.sft,
            seed=seed,
            rows=build_turn_sft_rows(
                ctx,
                model=base,
                problems=problems,
                rehearsals=rehearsals,
                protocol=settings.protocol,
                speaker=speaker,
                max_length=settings.sft.max_length,
            ),
        )
        for speaker in Speaker
    ]
    return Two("cold start", *trained), thought_table(ctx, values, rehearsals)


def chunk(
    ctx: RunContext, settings: LongShort, thinker: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef
) -> ArtifactRef:
    """The traces' thoughts."""
    how = settings.chunking
    if isinstance(how, LlmChunker):
        return chunk_by_llm(ctx, model=thinker, problems=problems, traces=traces, chunker=how, llm=settings.llm)
    return chunk_by_markers(ctx, model=thinker, traces=traces, segmentation=how.segmentation)


def play_round(ctx: RunContext, settings: LongShort, problems: ArtifactRef, two: Two, number: int, who: Who) -> Two:
    """One of the two is reinforced, the other answers as it is."""
    model, partner = (two.long, two.short) if who == "long" else (two.short, two.long)
    better = reinforce(
        ctx,
        inputs=ReinforcementInputs(
            model=model,
            partner=partner,
            problems=problems,
            trains=who,
            protocol=settings.protocol,
            rl=settings.rl,
            max_tokens=settings.protocol.max_turn_tokens,
            seed=settings.seed + number * ROUNDS_APART,
        ),
    )
    name = f"round {number}, {who}"
    return Two(name, better, two.short) if who == "long" else Two(name, two.long, better)


def reinforce_alone(ctx: RunContext, settings: LongShort, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """The base by itself: the same rewards, and as many steps as all rounds have together."""
    rl = settings.rl.model_copy(update={"max_steps": settings.rl.max_steps * max(1, len(settings.rl.rounds))})
    return reinforce(
        ctx,
        inputs=ReinforcementInputs(
            model=base,
            partner=None,
            problems=problems,
            trains=None,
            protocol=None,
            rl=rl,
            max_tokens=settings.benchmark_sampling.max_tokens,
            seed=settings.seed,
        ),
    )


def stopped_early(
    ctx: RunContext, settings: LongShort, base: ArtifactRef, experiment: ArtifactRef
) -> list[EvaluatedModel]:
    """The control that needs no training, where it is wanted."""
    how = settings.early_stop
    if how is None:
        return []
    scores = evaluate_early_stop(
        ctx,
        inputs=EarlyStopInputs(
            model=base,
            problems=experiment,
            sampling=settings.benchmark_sampling,
            segmentation=how.segmentation,
            probing=how.probing,
            finalizing=how.finalizing,
            seed=settings.seed,
        ),
    )
    return [EvaluatedModel("early stop", "control", base, scores, independent=False)]
