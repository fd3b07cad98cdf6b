"""Difficulty-aware CoT distillation, end to end (arXiv 2509.05226): sample, value, rate, compress, SFT, DPO, judge."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from conf.cot_distillation import (
    PAPER_IMAGE_RATIOS,
    PAPER_RATIOS,
    CotDistillation,
    DatasetTeacher,
    EndpointTeacher,
    LlmCompressor,
    LlmRater,
    LocalTeacher,
)
from conf.evaluation import OTHER_IMAGES
from conf.problems import Boards, Stories, has_images
from flows.evaluation import evaluate_all, reference_models
from flows.pipeline import pipeline
from tasks.reports.page.of_distillation import DistillationArtifacts, distillation_views
from tasks.reports.page.run_page import write_run_page
from tasks.reports.report import write_report
from tasks.reports.seed_results import ExperimentResult, NamedModel, build_seed_result
from tasks.reports.tables import compression_table, judge_table, rating_table
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import build_sft_rows
from tasks.steps.dataset_traces import read_traces
from tasks.steps.distillation import (
    CompressionInputs,
    compress_by_llm,
    compress_by_value,
    estimate_prefix_values,
    import_traces,
    pair_compressed,
    permute_ratings,
    rate_by_effort,
    rate_by_llm,
    select_traces,
    uncompressed,
    write_traces,
)
from tasks.steps.judging import judge_completions
from tasks.steps.problem_hub import pinned
from tasks.steps.problems import (
    decontaminate,
    drop_long_prompts,
    filter_sources_by_prompt_length,
    load_sources,
    swap_images,
)
from tasks.steps.sampling import sample_traces
from tasks.steps.training import train_dpo, train_sft


class Rated(NamedTuple):
    """Rated traces, and what they are compressed with."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    """Selected right traces, in the student's token ids."""
    values: ArtifactRef | None
    """Prefix values; None where neither rating nor compression uses them."""
    ratings: ArtifactRef


def run_cot_distillation(ctx: RunContext, settings: CotDistillation) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the report."""
    ctx.directory.save_settings(settings)
    result = run_experiment(ctx, settings)
    report = write_report(ctx, settings, [build_seed_result(ctx, settings, result)])
    write_run_page(ctx, settings, report, result)
    return ctx.directory.report


def run_experiment(ctx: RunContext, settings: CotDistillation) -> ExperimentResult:
    """Trains method, its parts and controls, and evaluates them and the base."""
    settings = settings.model_copy(update={"problems": pinned(settings.problems)})  # traces come from the same commit
    seed = settings.seed
    loaded = load_sources(ctx, settings.problems, settings.eval_sets, seed)
    base, references = ctx.resources.model(settings.model), reference_models(ctx, settings)
    room, others = settings.max_prompt_tokens, [one.model for one in references]
    sources = filter_sources_by_prompt_length(ctx, loaded, [base], room, references=others)
    problems, eval_sets = decontaminate(ctx, settings.decontamination, sources, seed), dict(sources.eval_sets)
    if settings.swapped_images:
        main, main_set = next(iter(eval_sets.items()))
        swapped = swap_images(ctx, problems=main_set)
        eval_sets[main + OTHER_IMAGES] = drop_long_prompts(ctx, model=base, problems=swapped, room=room, roles=())
    rated = rate(ctx, settings, base, problems)
    compressed = compress(ctx, settings, rated)
    policies = train_all(ctx, settings, rated, compressed)
    sets = evaluate_all(ctx, settings, [*policies, *references], eval_sets, seed)
    paper = PAPER_IMAGE_RATIOS if has_images(settings.problems) else PAPER_RATIOS
    tables = [
        partial(rating_table, ctx, rated.problems, rated.ratings),
        partial(compression_table, ctx, compressed, paper),
    ]
    if settings.judging and settings.llm:
        main, main_set = next(iter(eval_sets.items()))
        judged = judge_completions(
            ctx,
            models=[policy.model for policy in policies],
            answers_directly=[policy.answers_directly for policy in policies],
            problems=main_set,
            sampling=settings.sampling_on(main),
            judging=settings.judging,
            llm=settings.llm,
            seed=seed,
        )
        tables.append(partial(judge_table, ctx, judged, [policy.name for policy in policies]))
    views = partial(distillation_views, ctx, _for_the_page(settings, rated, compressed))
    return ExperimentResult(seed, base.digest, sets, tables, problems=eval_sets, views=views)


def _for_the_page(settings: CotDistillation, rated: Rated, compressed: ArtifactRef) -> DistillationArtifacts:
    return DistillationArtifacts(
        base=rated.base,
        problems=rated.problems,
        traces=rated.traces,
        values=rated.values,
        ratings=rated.ratings,
        compressed=compressed,
        budget=settings.compression.budget,
    )


def rate(ctx: RunContext, settings: CotDistillation, base: ArtifactRef, problems: ArtifactRef) -> Rated:
    """Gets the teacher's traces, selects right ones and rates their problems."""
    seed, probing = settings.seed, settings.probing
    all_traces = teacher_traces(ctx, settings, base, problems)
    traces = select_traces(ctx, traces=all_traces, selection=settings.selection)
    values = None
    if settings.needs_prefix_values:
        values = estimate_prefix_values(
            ctx,
            model=base,
            problems=problems,
            traces=traces,
            segmentation=settings.segmentation,
            probing=probing,
            seed=seed,
        )
    if isinstance(settings.rating, LlmRater):
        ratings = rate_by_llm(ctx, problems=problems, traces=traces, rater=settings.rating, llm=settings.llm)
    else:
        ratings = rate_by_effort(ctx, traces=all_traces, values=values, threshold=probing.threshold)
    return Rated(base, problems, traces, values, ratings)


def teacher_traces(ctx: RunContext, settings: CotDistillation, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """The teacher's traces in the student's token ids."""
    teacher, sampling, seed = settings.teacher, settings.sampling, settings.seed
    if isinstance(teacher, DatasetTeacher):
        source = settings.problems
        assert not isinstance(source, Stories | Boards)
        return read_traces(ctx, model=base, problems=problems, source=source, teacher=teacher, seed=seed)
    if isinstance(teacher, EndpointTeacher):
        return write_traces(ctx, model=base, problems=problems, teacher=teacher, sampling=sampling, seed=seed)
    if not teacher.model:
        return sample_traces(ctx, model=base, problems=problems, sampling=sampling, seed=seed)
    traces = sample_traces(
        ctx, model=ctx.resources.model(teacher.model), problems=problems, sampling=sampling, seed=seed
    )
    return import_traces(ctx, model=base, traces=traces)


def compress(ctx: RunContext, settings: CotDistillation, rated: Rated) -> ArtifactRef:
    """Rows of CompressedTrace, by the compressor of the settings."""
    compressor = settings.compression.by
    inputs = CompressionInputs(
        model=rated.base,
        problems=rated.problems,
        traces=rated.traces,
        ratings=rated.ratings,
        budget=settings.compression.budget,
        finalizing=settings.finalizing,
        seed=settings.seed,
    )
    if isinstance(compressor, LlmCompressor):
        return compress_by_llm(ctx, inputs=inputs, compressor=compressor, llm=settings.llm)
    return compress_by_value(ctx, inputs=inputs, values=rated.values)


def train_all(ctx: RunContext, settings: CotDistillation, rated: Rated, compressed: ArtifactRef) -> list[NamedModel]:
    """The base, the method, and the variants of the settings."""
    sft = sft_on(ctx, settings, rated, compressed)
    pairs = pairs_of(ctx, settings, rated, compressed)
    policies = [
        base_model(ctx, settings, rated.base),
        NamedModel("sft+dpo", "method", dpo_on(ctx, settings, rated, sft, pairs)),
    ]
    for name in settings.variants:
        if name == "sft":
            model = sft
        elif name == "dpo":
            model = dpo_on(ctx, settings, rated, rated.base, pairs)
        elif name == "sft-uncompressed":
            originals = uncompressed(ctx, traces=rated.traces, compressed=compressed)
            model = sft_on(ctx, settings, rated, originals)
        else:
            model = train_with_permuted_ratings(ctx, settings, rated)
        policies.append(NamedModel(name, "control", model))
    return policies


def base_model(ctx: RunContext, settings: CotDistillation, base: ArtifactRef) -> NamedModel:
    """The student before training. One that has never thought between tags, and learns it from others' traces, is
    evaluated without them, as its makers do."""
    teaches_itself = isinstance(settings.teacher, LocalTeacher) and not settings.teacher.model
    is_direct = not teaches_itself and not ctx.resources.checkpoint(base).marks_thinking
    if is_direct:
        ctx.warn(
            f"{settings.model} has no thinking tags: as the base it is prompted without them, and its whole reply is "
            f"graded; the trained models think between tags"
        )
    return NamedModel("base", "base", base, answers_directly=is_direct)


def train_with_permuted_ratings(ctx: RunContext, settings: CotDistillation, rated: Rated) -> ArtifactRef:
    """The method with ratings shuffled among the problems."""
    permuted = rated._replace(ratings=permute_ratings(ctx, ratings=rated.ratings, seed=settings.seed))
    compressed = compress(ctx, settings, permuted)
    sft = sft_on(ctx, settings, permuted, compressed)
    return dpo_on(ctx, settings, permuted, sft, pairs_of(ctx, settings, permuted, compressed))


def sft_on(ctx: RunContext, settings: CotDistillation, rated: Rated, completions: ArtifactRef) -> ArtifactRef:
    rows = build_sft_rows(
        ctx, model=rated.base, problems=rated.problems, completions=completions, max_length=settings.sft.max_length
    )
    images = rated.problems if has_images(settings.problems) else None
    return train_sft(ctx, model=rated.base, rows=rows, images=images, training=settings.sft, seed=settings.seed)


def pairs_of(ctx: RunContext, settings: CotDistillation, rated: Rated, compressed: ArtifactRef) -> ArtifactRef:
    return pair_compressed(
        ctx,
        model=rated.base,
        problems=rated.problems,
        traces=rated.traces,
        compressed=compressed,
        max_length=settings.dpo.max_length,
    )


def dpo_on(
    ctx: RunContext, settings: CotDistillation, rated: Rated, start: ArtifactRef, pairs: ArtifactRef
) -> ArtifactRef:
    images = rated.problems if has_images(settings.problems) else None
    return train_dpo(ctx, model=start, pairs=pairs, images=images, training=settings.dpo, seed=settings.seed)


cot_distillation = pipeline(CotDistillation, run_cot_distillation)
