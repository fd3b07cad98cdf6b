"""Long⊗Short, end to end (arXiv 2505.11827): sample, chunk, value, cold start of two models, alternating RL."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from conf.long_short import LlmChunker, LongShort, Who
from flows.evaluation import evaluate_all, reference_models
from flows.pipeline import pipeline
from reasoning.dialogue import Speaker
from tasks.reports.model_pair import save_model_pair
from tasks.reports.page.of_long_short import ColdStartArtifacts, cold_start_views
from tasks.reports.page.run_page import write_run_page
from tasks.reports.report import write_report
from tasks.reports.seed_results import EvaluatedModel, ExperimentResult, NamedModel, build_seed_result
from tasks.reports.tables import thought_table
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import EarlyStopInputs, evaluate_early_stop
from tasks.steps.dialogues import evaluate_dialogues, pair_models, score_dialogues
from tasks.steps.distillation import select_traces
from tasks.steps.grpo import GrpoInputs, train_grpo
from tasks.steps.problems import decontaminate, filter_sources_by_prompt_length, load_sources
from tasks.steps.sampling import sample_traces
from tasks.steps.thoughts import (
    build_cold_start_dialogues,
    build_turn_sft_rows,
    chunk_by_llm,
    chunk_by_markers,
    value_thoughts,
)
from tasks.steps.training import train_sft

ROUND_SEED_STRIDE = 1_000_000
"""Distance between the seeds of two rounds."""


class PhaseModels(NamedTuple):
    """The long-thought and the short-thought model after a phase (cold start, or a round of GRPO)."""

    name: str
    long: ArtifactRef
    short: ArtifactRef


def run_long_short(ctx: RunContext, settings: LongShort) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the report."""
    ctx.directory.save_settings(settings)
    result = run_experiment(ctx, settings)
    report = write_report(ctx, settings, [build_seed_result(ctx, settings, result)])
    save_model_pair(ctx, result)
    write_run_page(ctx, settings, report, result)
    return ctx.directory.report


def run_experiment(ctx: RunContext, settings: LongShort) -> ExperimentResult:
    """Trains both models and the controls, and evaluates the base, the pair after each phase, and the controls."""
    seed = settings.seed
    loaded = load_sources(ctx, settings.problems, settings.eval_sets, seed)
    base = ctx.resources.model(settings.model)
    teacher = ctx.resources.model(settings.teacher) if settings.teacher else base
    readers = [base] if teacher is base else [base, teacher]
    references, room = reference_models(ctx, settings), settings.max_prompt_tokens
    others = [one.model for one in references]
    sources = filter_sources_by_prompt_length(ctx, loaded, readers, room, settings.protocol.roles, others)
    problems, eval_sets = decontaminate(ctx, settings.decontamination, sources, seed), sources.eval_sets
    started, made = cold_start(ctx, settings, base, teacher, problems)
    phases = [started]
    for number, who in enumerate(settings.rl.rounds, start=1):
        phases.append(grpo_round(ctx, settings, problems, phases[-1], number, who))
    singles = [NamedModel("teacher" if settings.teacher else "base", "base", teacher)]
    if settings.one_model:
        singles.append(NamedModel("one model", "control", grpo_single_model(ctx, settings, base, problems)))
    sets = evaluate_all(ctx, settings, [*singles, *references], eval_sets, seed)
    main, dialogues_of = next(iter(eval_sets)), {}
    for phase in phases:
        role, pair = (
            "method" if phase is phases[-1] else "control",
            pair_models(ctx, long=phase.long, short=phase.short),
        )
        for name, eval_set in eval_sets.items():
            dialogues, scores = evaluate_phase(ctx, settings, phase, name, eval_set)
            sets[name].append(EvaluatedModel(phase.name, role, pair, scores))
            if name == main:
                dialogues_of[phase.name] = dialogues
    sets[main] += evaluate_stopped_early(ctx, settings, teacher, eval_sets[main])
    return ExperimentResult(
        seed,
        base.digest,
        sets,
        [partial(thought_table, ctx, made.values, made.dialogues)],
        dialogues=dialogues_of,
        problems=eval_sets,
        views=partial(cold_start_views, ctx, made),
    )


def evaluate_phase(
    ctx: RunContext, settings: LongShort, phase: PhaseModels, benchmark: str, eval_set: ArtifactRef
) -> tuple[ArtifactRef, ArtifactRef]:
    """Dialogues of the two models on an evaluation set, and their scores."""
    dialogues = evaluate_dialogues(
        ctx,
        long=phase.long,
        short=phase.short,
        problems=eval_set,
        protocol=settings.protocol,
        sampling=settings.sampling_on(benchmark),
        seed=settings.seed,
    )
    return dialogues, score_dialogues(ctx, problems=eval_set, dialogues=dialogues)


def cold_start(
    ctx: RunContext, settings: LongShort, base: ArtifactRef, teacher: ArtifactRef, problems: ArtifactRef
) -> tuple[PhaseModels, ColdStartArtifacts]:
    """Trains two models from one base by SFT: Long on the important thoughts of the teacher's traces, Short on the
    others."""
    seed = settings.seed
    sampled = sample_traces(ctx, model=teacher, problems=problems, sampling=settings.sampling, seed=seed)
    traces = select_traces(ctx, traces=sampled, selection=settings.selection)
    chunked = chunk(ctx, settings, teacher, problems, traces)
    values = value_thoughts(
        ctx, model=teacher, problems=problems, traces=traces, chunked=chunked, rollouts=settings.rollouts, seed=seed
    )
    dialogues = build_cold_start_dialogues(
        ctx,
        model=teacher,
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
                dialogues=dialogues,
                protocol=settings.protocol,
                speaker=speaker,
                max_length=settings.sft.max_length,
            ),
        )
        for speaker in Speaker
    ]
    return PhaseModels("cold start", *trained), ColdStartArtifacts(teacher, problems, traces, values, dialogues)


def chunk(
    ctx: RunContext, settings: LongShort, teacher: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef
) -> ArtifactRef:
    """Rows of ChunkedTrace, by the chunker of the settings."""
    chunker = settings.chunking
    if isinstance(chunker, LlmChunker):
        return chunk_by_llm(ctx, model=teacher, problems=problems, traces=traces, chunker=chunker, llm=settings.llm)
    return chunk_by_markers(ctx, model=teacher, traces=traces, segmentation=chunker.segmentation)


def grpo_round(
    ctx: RunContext, settings: LongShort, problems: ArtifactRef, models: PhaseModels, number: int, who: Who
) -> PhaseModels:
    """Trains one model by GRPO while the other, frozen, is its partner."""
    model, partner = (models.long, models.short) if who == "long" else (models.short, models.long)
    trained = train_grpo(
        ctx,
        inputs=GrpoInputs(
            model=model,
            partner=partner,
            problems=problems,
            trains=who,
            protocol=settings.protocol,
            rl=settings.rl,
            max_tokens=settings.protocol.max_turn_tokens,
            seed=settings.seed + number * ROUND_SEED_STRIDE,
        ),
    )
    name = f"round {number}, {who}"
    return models._replace(name=name, **{who: trained})


def grpo_single_model(ctx: RunContext, settings: LongShort, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """Trains the base alone, with the same rewards and as many steps as all rounds together."""
    rl = settings.rl.model_copy(update={"max_steps": settings.rl.max_steps * max(1, len(settings.rl.rounds))})
    return train_grpo(
        ctx,
        inputs=GrpoInputs(
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


def evaluate_stopped_early(
    ctx: RunContext, settings: LongShort, model: ArtifactRef, eval_set: ArtifactRef
) -> list[EvaluatedModel]:
    """Evaluates the early-stop control, if the settings ask for it."""
    early_stop = settings.early_stop
    if early_stop is None:
        return []
    scores = evaluate_early_stop(
        ctx,
        inputs=EarlyStopInputs(
            model=model,
            problems=eval_set,
            sampling=settings.sampling_on(next(iter(settings.eval_sets))),
            segmentation=early_stop.segmentation,
            probing=early_stop.probing,
            finalizing=early_stop.finalizing,
            seed=settings.seed,
        ),
    )
    return [EvaluatedModel("early stop", "control", model, scores, independent=False)]


long_short = pipeline(LongShort, run_long_short)
