"""Long⊗Short, end to end (arXiv 2505.11827): sample, chunk, value, cold start of two models, alternating RL."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.long_short import LlmChunker, LongShort, Who
from reasoning.dialogue import Speaker
from tasks.reports.model_pair import keep_couple
from tasks.reports.report import write_report
from tasks.reports.seed_results import Exam, Examined, Note, Policy, outcome_of
from tasks.reports.tables import thought_table
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import examine_early_stop
from tasks.steps.dialogues import converse, couple, score_conversations
from tasks.steps.distillation import choose_traces
from tasks.steps.problems import clean_problems, draw_sources, fitting_sources
from tasks.steps.reinforcement import reinforce
from tasks.steps.sampling import examine, sample_traces
from tasks.steps.thoughts import chunk_by_llm, chunk_by_markers, rehearse, turns_to_learn, value_thoughts
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
    with RunContext("long-short", settings.storage, settings.engine, prompt=settings.prompt) as place:
        return run_long_short(place, settings)


def run_long_short(place: RunContext, settings: LongShort) -> Path:
    """The pipeline in a given workplace."""
    place.save_settings(settings)
    exam = sit_exam(place, settings)
    write_report(place, settings, [outcome_of(place, settings, exam)])
    keep_couple(place, exam)
    return place.report


def sit_exam(place: RunContext, settings: LongShort) -> Exam:
    """Base, cold start, the two models after each round, and the controls, examined."""
    seed, sampling = settings.seed, settings.benchmark_sampling
    drawn = draw_sources(place, settings.problems, settings.benchmarks, seed)
    base = place.model(settings.model)
    thinker = place.model(settings.teacher) if settings.teacher else base
    readers = [base] if thinker is base else [base, thinker]
    sources = fitting_sources(place, drawn, readers, settings.room_for_prompt, settings.protocol.roles)
    problems, exams = clean_problems(place, settings.decontamination, sources, seed), sources.exams
    started, thoughts = cold_start(place, settings, base, thinker, problems)
    phases = [started]
    for number, who in enumerate(settings.rl.rounds, start=1):
        phases.append(play_round(place, settings, problems, phases[-1], number, who))
    singles = [Policy("teacher" if settings.teacher else "base", "base", thinker)]
    if settings.one_model:
        singles.append(Policy("one model", "control", reinforce_alone(place, settings, base, problems)))
    sets: dict[str, list[Examined]] = {name: [] for name in exams}
    for policy, (name, exam) in product(singles, exams.items()):
        scores = examine(place, model=policy.model, problems=exam, sampling=sampling, seed=seed)
        sets[name].append(Examined(*policy, scores))
    main, talks = next(iter(exams)), {}
    for two in phases:
        role, pair = "method" if two is phases[-1] else "control", couple(place, long=two.long, short=two.short)
        for name, exam in exams.items():
            spoken = converse(
                place, long=two.long, short=two.short, problems=exam, protocol=settings.protocol, sampling=sampling,
                seed=seed,
            )  # fmt: skip
            scores = score_conversations(place, problems=exam, conversations=spoken)
            sets[name].append(Examined(two.name, role, pair, scores))
            if name == main:
                talks[two.name] = spoken
    sets[main] += stopped_early(place, settings, thinker, exams[main])
    return Exam(seed, base.digest, sets, [thoughts], conversations=talks)


def cold_start(
    place: RunContext, settings: LongShort, base: ArtifactRef, thinker: ArtifactRef, problems: ArtifactRef
) -> tuple[Two, Note]:
    """Two models from one base: one has learnt the important turns of the thinker's traces, one the others; and a table
    of those."""
    seed = settings.seed
    drawn = sample_traces(place, model=thinker, problems=problems, sampling=settings.sampling, seed=seed)
    traces = choose_traces(place, traces=drawn, choosing=settings.choosing)
    chunked = chunk(place, settings, thinker, problems, traces)
    values = value_thoughts(
        place, model=thinker, problems=problems, traces=traces, chunked=chunked, rollouts=settings.rollouts, seed=seed
    )
    rehearsals = rehearse(
        place, model=thinker, traces=traces, values=values, importance=settings.importance,
        most_rounds=settings.protocol.most_rounds,
    )  # fmt: skip
    trained = [
        train_sft(
            place, model=base, training=settings.sft, seed=seed,
            rows=turns_to_learn(
                place, model=base, problems=problems, rehearsals=rehearsals, protocol=settings.protocol,
                speaker=speaker, max_length=settings.sft.max_length,
            ),
        )
        for speaker in Speaker
    ]  # fmt: skip
    return Two("cold start", *trained), thought_table(place, values, rehearsals)


def chunk(
    place: RunContext, settings: LongShort, thinker: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef
) -> ArtifactRef:
    """The traces' thoughts."""
    how = settings.chunking
    if isinstance(how, LlmChunker):
        return chunk_by_llm(place, model=thinker, problems=problems, traces=traces, chunker=how, llm=settings.llm)
    return chunk_by_markers(place, model=thinker, traces=traces, segmentation=how.segmentation)


def play_round(place: RunContext, settings: LongShort, problems: ArtifactRef, two: Two, number: int, who: Who) -> Two:
    """One of the two is reinforced, the other answers as it is."""
    model, partner = (two.long, two.short) if who == "long" else (two.short, two.long)
    better = reinforce(
        place, model=model, partner=partner, problems=problems, trains=who, protocol=settings.protocol, rl=settings.rl,
        max_tokens=settings.protocol.turn_tokens, seed=settings.seed + number * ROUNDS_APART,
    )  # fmt: skip
    name = f"round {number}, {who}"
    return Two(name, better, two.short) if who == "long" else Two(name, two.long, better)


def reinforce_alone(place: RunContext, settings: LongShort, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """The base by itself: the same rewards, and as many steps as all rounds have together."""
    rl = settings.rl.model_copy(update={"steps": settings.rl.steps * max(1, len(settings.rl.rounds))})
    return reinforce(
        place, model=base, partner=None, problems=problems, trains=None, protocol=None, rl=rl,
        max_tokens=settings.benchmark_sampling.max_tokens, seed=settings.seed,
    )  # fmt: skip


def stopped_early(place: RunContext, settings: LongShort, base: ArtifactRef, exam: ArtifactRef) -> list[Examined]:
    """The control that needs no training, where it is wanted."""
    how = settings.early_stop
    if how is None:
        return []
    scores = examine_early_stop(
        place, model=base, problems=exam, sampling=settings.benchmark_sampling, segmentation=how.segmentation,
        probing=how.probing, finalizing=how.finalizing, seed=settings.seed,
    )  # fmt: skip
    return [Examined("early stop", "control", base, scores, independent=False)]
