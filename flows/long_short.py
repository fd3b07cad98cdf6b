"""Long⊗Short, end to end (arXiv 2505.11827): sample, chunk, value, cold start of two models, alternating RL."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.long_short import LlmChunker, LongShort
from reasoning.dialogue import Speaker
from reasoning.stories import Split
from tasks.artifacts import ArtifactRef
from tasks.dialogues import converse, couple, score_conversations
from tasks.distillation import choose_traces
from tasks.problems import clean_problems, problems_from
from tasks.reporting import Exam, Examined, write_report
from tasks.sampling import examine, sample_traces
from tasks.thoughts import chunk_by_llm, chunk_by_markers, rehearse, turns_to_learn, value_thoughts
from tasks.training import train_sft
from tasks.workplace import Workplace


class Two(NamedTuple):
    """The models that talk with each other, as they are after a phase."""

    name: str
    long: ArtifactRef
    short: ArtifactRef


@flow(name="long-short", flow_run_name="long-short-{settings.preset}-seed-{settings.seed}", persist_result=False)
def long_short(settings: LongShort) -> Path:
    """Returns the path of the report."""
    with Workplace("long-short", settings.storage, settings.engine) as place:
        return run_long_short(place, settings)


def run_long_short(place: Workplace, settings: LongShort) -> Path:
    """The pipeline in a given workplace."""
    place.save_settings(settings)
    write_report(place, settings, [sit_exam(place, settings)])
    return place.report


def sit_exam(place: Workplace, settings: LongShort) -> Exam:
    """Base, cold start, and the two models after each round, examined."""
    seed = settings.seed
    problems_of = partial(problems_from, place, seed=seed)
    exams = {name: problems_of(source, Split.BENCHMARK) for name, source in settings.benchmarks.items()}
    problems = clean_problems(place, settings.decontamination, problems_of(settings.problems, Split.TRAIN), exams, seed)
    base = place.model(settings.model)
    phases = [cold_start(place, settings, base, problems)]
    sampling = settings.benchmark_sampling
    sets: dict[str, list[Examined]] = {name: [] for name in exams}
    for name, exam in exams.items():
        scores = examine(place, model=base, problems=exam, sampling=sampling, seed=seed)
        sets[name].append(Examined("base", "base", base, scores))
    for two, (name, exam) in product(phases, exams.items()):
        sets[name].append(examine_two(place, settings, two, exam, is_last=two is phases[-1]))
    return Exam(seed, sets)


def cold_start(place: Workplace, settings: LongShort, base: ArtifactRef, problems: ArtifactRef) -> Two:
    """Two models from one base: one has learnt the important turns of its traces, one the others."""
    seed = settings.seed
    drawn = sample_traces(place, model=base, problems=problems, sampling=settings.sampling, seed=seed)
    traces = choose_traces(place, traces=drawn, choosing=settings.choosing)
    chunked = chunk(place, settings, base, problems, traces)
    values = value_thoughts(
        place, model=base, problems=problems, traces=traces, chunked=chunked, rollouts=settings.rollouts, seed=seed
    )
    rehearsals = rehearse(
        place, model=base, traces=traces, values=values, importance=settings.importance,
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
    return Two("cold start", *trained)


def chunk(
    place: Workplace, settings: LongShort, base: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef
) -> ArtifactRef:
    """The traces' thoughts."""
    how = settings.chunking
    if isinstance(how, LlmChunker):
        return chunk_by_llm(place, model=base, problems=problems, traces=traces, chunker=how, llm=settings.llm)
    return chunk_by_markers(place, model=base, traces=traces, segmentation=how.segmentation)


def examine_two(place: Workplace, settings: LongShort, two: Two, exam: ArtifactRef, is_last: bool) -> Examined:
    pair = couple(place, long=two.long, short=two.short)
    talks = converse(
        place, long=two.long, short=two.short, problems=exam, protocol=settings.protocol,
        sampling=settings.benchmark_sampling, seed=settings.seed,
    )  # fmt: skip
    scores = score_conversations(place, problems=exam, conversations=talks)
    return Examined(two.name, "method" if is_last else "control", pair, scores)
