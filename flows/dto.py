"""DTO, end to end (arXiv 2505.21765): sample, probe, cut, finalize, prune, pair, SimPO, examine, report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prefect import flow

from conf.dto import Dto, LlmPruning
from models.checkpoints.checkpoint import refuse_changed_logits
from reasoning.records import PairKind
from tasks.reports.report import write_report
from tasks.reports.seed_results import Exam, Examined, Policy, outcome_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.controls import contrast_pairs, demonstrations, examine_early_stop, instruct, select_pairs
from tasks.steps.dto import (
    build_pairs,
    finalize_traces,
    probe_prefixes,
    propose_removals,
    prune_traces,
    recheck_crossings,
)
from tasks.steps.problems import clean_problems, draw_sources, fitting_sources
from tasks.steps.sampling import examine, sample_traces
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
    with RunContext("dto", settings.storage, settings.engine, prompt=settings.prompt) as place:
        return run_dto(place, settings)


def run_dto(place: RunContext, settings: Dto) -> Path:
    """The pipeline in a given workplace."""
    place.save_settings(settings)
    write_report(place, settings, [outcome_of(place, settings, sit_exam(place, settings))])
    return place.report


def sit_exam(place: RunContext, settings: Dto) -> Exam:
    """Base, method and controls, trained and examined."""
    seed, controls, benchmark = settings.seed, settings.controls.trained, settings.benchmark
    benchmarks = {MAIN: benchmark.problems} | ({UNSEEN: benchmark.unseen} if benchmark.unseen else {})
    drawn = draw_sources(place, settings.problems, benchmarks, seed)
    base = place.model(settings.model)
    refuse_changed_logits(place.checkpoint(base))
    sources = fitting_sources(place, drawn, [base], settings.room_for_prompt)
    problems, exams = clean_problems(place, settings.decontamination, sources, seed), sources.exams
    made = curate(place, settings, base, problems)
    pairs = _pairs(place, settings, made, made.optimised)
    method = train_simpo(place, model=made.base, pairs=pairs, training=settings.training, seed=seed)
    policies = [
        Policy("base", "base", made.base),
        Policy("dto", "method", method),
        *(Policy(name, "control", train_control(place, settings, made, pairs, name)) for name in controls),
    ]
    sets = {name: examine_all(place, settings, policies, exam) for name, exam in exams.items()}
    sets[MAIN] += examine_untrained(place, settings, made.base, exams[MAIN])
    return Exam(seed, base.digest, sets)


def curate(place: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef) -> Curated:
    """From problems to optimised traces."""
    seed = settings.seed
    traces = sample_traces(place, model=base, problems=problems, sampling=settings.sampling, seed=seed)
    scans = probe_prefixes(
        place, model=base, problems=problems, traces=traces, segmentation=settings.segmentation,
        probing=settings.probing, seed=seed,
    )  # fmt: skip
    recheck_crossings(
        place, model=base, problems=problems, traces=traces, scans=scans, probing=settings.probing, seed=seed
    )
    finalized = finalize_traces(
        place, model=base, problems=problems, traces=traces, scans=scans, finalizing=settings.finalizing, seed=seed
    )
    made = Curated(base, problems, traces, scans, finalized, optimised=finalized)
    if settings.pruning.type == "none":
        return made
    return made._replace(optimised=_pruned(place, settings, made, settings.pruning.most_surprise))


def _pruned(place: RunContext, settings: Dto, made: Curated, most_surprise: float) -> ArtifactRef:
    rows = {
        "model": made.base, "problems": made.problems, "traces": made.traces, "scans": made.scans,
        "optimised": made.finalized,
    }  # fmt: skip
    proposals = None
    if isinstance(settings.pruning, LlmPruning):
        proposals = propose_removals(place, **rows, pruning=settings.pruning, llm=settings.llm)
    return prune_traces(
        place, **rows, proposals=proposals, most_surprise=most_surprise, probing=settings.probing,
        finalizing=settings.finalizing, seed=settings.seed,
    )  # fmt: skip


def _pairs(place: RunContext, settings: Dto, made: Curated, optimised: ArtifactRef) -> ArtifactRef:
    return build_pairs(
        place, model=made.base, problems=made.problems, traces=made.traces, optimised=optimised,
        pairing=settings.pairing, max_length=settings.training.max_length,
    )  # fmt: skip


def train_control(place: RunContext, settings: Dto, made: Curated, pairs: ArtifactRef, name: str) -> ArtifactRef:
    """Another training of the same base; see `conf.dto.Controls`. `pairs` are the method's."""
    if name == "sft":
        sft = settings.controls.sft(settings.training)
        rows = demonstrations(
            place, model=made.base, problems=made.problems, completions=made.optimised, max_length=sft.max_length
        )
        return train_sft(place, model=made.base, rows=rows, training=sft, seed=settings.seed)
    if name == "shortest-longest":
        pairs = contrast_pairs(
            place, model=made.base, problems=made.problems, traces=made.traces, max_length=settings.training.max_length
        )
    elif name == "paper-pairs":
        pairs = select_pairs(place, pairs=pairs, kind=PairKind.OPTIMISED)
    elif name == "probe-pruned":
        pairs = _pairs(place, settings, made, _pruned(place, settings, made, UNBOUNDED))
    else:
        pairs = _pairs(place, settings, made, made.finalized)
    return train_simpo(place, model=made.base, pairs=pairs, training=settings.training, seed=settings.seed)


def examine_all(place: RunContext, settings: Dto, policies: list[Policy], problems: ArtifactRef) -> list[Examined]:
    sampling, seed = settings.benchmark.sampling, settings.seed
    return [
        Examined(*policy, examine(place, model=policy.model, problems=problems, sampling=sampling, seed=seed))
        for policy in policies
    ]


def examine_untrained(place: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef) -> list[Examined]:
    """The controls that need no training."""
    seed, sampling = settings.seed, settings.benchmark.sampling
    examined = []
    if settings.controls.early_stop:
        scores = examine_early_stop(
            place, model=base, problems=problems, sampling=sampling, segmentation=settings.segmentation,
            probing=settings.probing, finalizing=settings.finalizing, seed=seed,
        )  # fmt: skip
        examined.append(Examined("early-stop", "control", base, scores, independent=False))
    if settings.controls.fast_prompt:
        brief = instruct(place, problems=problems, instruction=settings.controls.fast_prompt)
        scores = examine(place, model=base, problems=brief, sampling=sampling, seed=seed)
        examined.append(Examined("fast-prompt", "control", base, scores))
    return examined
