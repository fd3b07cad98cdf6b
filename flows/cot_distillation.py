"""Difficulty-aware CoT distillation, end to end (arXiv 2509.05226): sample, value, rate, compress, SFT, DPO, judge."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.cot_distillation import CotDistillation, EndpointTeacher, LlmCompressor, LlmRater
from tasks.reports.report import write_report
from tasks.reports.seed_results import Exam, Examined, Policy, outcome_of
from tasks.reports.tables import compression_table, judge_table, rating_table
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import demonstrations
from tasks.steps.distillation import (
    adopt_traces,
    choose_traces,
    compress_by_llm,
    compress_by_value,
    exchange_ratings,
    pair_compressed,
    rate_by_effort,
    rate_by_llm,
    uncompressed,
    value_prefixes,
    write_traces,
)
from tasks.steps.judging import judge_completions
from tasks.steps.problems import clean_problems, draw_sources, fitting_sources
from tasks.steps.sampling import examine, sample_traces
from tasks.steps.training import train_dpo, train_sft


class Rated(NamedTuple):
    """What is compressed, and by what."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    """The chosen right ones, in the student's token ids."""
    values: ArtifactRef | None
    """None where nobody reads them."""
    ratings: ArtifactRef


@flow(
    name="cot-distillation", flow_run_name="cot-distillation-{settings.preset}-seed-{settings.seed}",
    persist_result=False,
)  # fmt: skip
def cot_distillation(settings: CotDistillation) -> Path:
    """Returns the path of the report."""
    with RunContext("cot-distillation", settings.storage, settings.engine, prompt=settings.prompt) as place:
        return run_cot_distillation(place, settings)


def run_cot_distillation(place: RunContext, settings: CotDistillation) -> Path:
    """The pipeline in a given workplace."""
    place.save_settings(settings)
    write_report(place, settings, [outcome_of(place, settings, sit_exam(place, settings))])
    return place.report


def sit_exam(place: RunContext, settings: CotDistillation) -> Exam:
    """Base, method, its parts and controls, trained and examined."""
    seed = settings.seed
    drawn = draw_sources(place, settings.problems, settings.benchmarks, seed)
    base = place.model(settings.model)
    sources = fitting_sources(place, drawn, [base], settings.room_for_prompt)
    problems, exams = clean_problems(place, settings.decontamination, sources, seed), sources.exams
    rated = rate(place, settings, base, problems)
    compressed = compress(place, settings, rated)
    policies = train_all(place, settings, rated, compressed)
    sampling = settings.benchmark_sampling
    sets: dict[str, list[Examined]] = {name: [] for name in exams}
    for policy, (name, exam) in product(policies, exams.items()):
        scores = examine(place, model=policy.model, problems=exam, sampling=sampling, seed=seed)
        sets[name].append(Examined(*policy, scores))
    tables = [rating_table(place, rated.problems, rated.ratings), compression_table(place, compressed)]
    if settings.judging and settings.llm:
        main = next(iter(exams.values()))
        judged = judge_completions(
            place, models=[policy.model for policy in policies], problems=main, sampling=sampling,
            judging=settings.judging, llm=settings.llm, seed=seed,
        )  # fmt: skip
        tables.append(judge_table(place, judged, [policy.name for policy in policies]))
    return Exam(seed, base.digest, sets, tables)


def rate(place: RunContext, settings: CotDistillation, base: ArtifactRef, problems: ArtifactRef) -> Rated:
    """From problems to rated traces."""
    seed, probing = settings.seed, settings.probing
    drawn = teach(place, settings, base, problems)
    traces = choose_traces(place, traces=drawn, choosing=settings.choosing)
    values = None
    if settings.reads_values:
        values = value_prefixes(
            place, model=base, problems=problems, traces=traces, segmentation=settings.segmentation, probing=probing,
            seed=seed,
        )  # fmt: skip
    if isinstance(settings.rating, LlmRater):
        ratings = rate_by_llm(place, problems=problems, traces=traces, rater=settings.rating, llm=settings.llm)
    else:
        ratings = rate_by_effort(place, traces=drawn, values=values, threshold=probing.threshold)
    return Rated(base, problems, traces, values, ratings)


def teach(place: RunContext, settings: CotDistillation, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """The teacher's traces in the student's token ids."""
    teacher, sampling, seed = settings.teacher, settings.sampling, settings.seed
    if isinstance(teacher, EndpointTeacher):
        return write_traces(place, model=base, problems=problems, teacher=teacher, sampling=sampling, seed=seed)
    if not teacher.model:
        return sample_traces(place, model=base, problems=problems, sampling=sampling, seed=seed)
    drawn = sample_traces(place, model=place.model(teacher.model), problems=problems, sampling=sampling, seed=seed)
    return adopt_traces(place, model=base, traces=drawn)


def compress(place: RunContext, settings: CotDistillation, rated: Rated) -> ArtifactRef:
    """Rows of Compressed."""
    by, seed = settings.compression.by, settings.seed
    if isinstance(by, LlmCompressor):
        return compress_by_llm(
            place, model=rated.base, problems=rated.problems, traces=rated.traces, ratings=rated.ratings,
            budget=settings.compression.budget, finalizing=settings.finalizing, compressor=by, llm=settings.llm,
            seed=seed,
        )  # fmt: skip
    return compress_by_value(
        place, model=rated.base, problems=rated.problems, traces=rated.traces, values=rated.values,
        ratings=rated.ratings, budget=settings.compression.budget, finalizing=settings.finalizing, seed=seed,
    )  # fmt: skip


def train_all(place: RunContext, settings: CotDistillation, rated: Rated, compressed: ArtifactRef) -> list[Policy]:
    """The base, the method, and what is examined beside it."""
    sft = sft_on(place, settings, rated, compressed)
    pairs = pairs_of(place, settings, rated, compressed)
    policies = [
        Policy("base", "base", rated.base),
        Policy("sft+dpo", "method", dpo_on(place, settings, sft, pairs)),
    ]
    for name in settings.variants:
        if name == "sft":
            model = sft
        elif name == "dpo":
            model = dpo_on(place, settings, rated.base, pairs)
        elif name == "sft-uncompressed":
            same = uncompressed(place, traces=rated.traces, compressed=compressed)
            model = sft_on(place, settings, rated, same)
        else:
            model = exchanged(place, settings, rated)
        policies.append(Policy(name, "control", model))
    return policies


def exchanged(place: RunContext, settings: CotDistillation, rated: Rated) -> ArtifactRef:
    """The method with the problems' ratings exchanged at random."""
    other = rated._replace(ratings=exchange_ratings(place, ratings=rated.ratings, seed=settings.seed))
    compressed = compress(place, settings, other)
    sft = sft_on(place, settings, other, compressed)
    return dpo_on(place, settings, sft, pairs_of(place, settings, other, compressed))


def sft_on(place: RunContext, settings: CotDistillation, rated: Rated, completions: ArtifactRef) -> ArtifactRef:
    rows = demonstrations(
        place, model=rated.base, problems=rated.problems, completions=completions, max_length=settings.sft.max_length
    )
    return train_sft(place, model=rated.base, rows=rows, training=settings.sft, seed=settings.seed)


def pairs_of(place: RunContext, settings: CotDistillation, rated: Rated, compressed: ArtifactRef) -> ArtifactRef:
    return pair_compressed(
        place, model=rated.base, problems=rated.problems, traces=rated.traces, compressed=compressed,
        max_length=settings.dpo.max_length,
    )  # fmt: skip


def dpo_on(place: RunContext, settings: CotDistillation, start: ArtifactRef, pairs: ArtifactRef) -> ArtifactRef:
    return train_dpo(place, model=start, pairs=pairs, training=settings.dpo, seed=settings.seed)
