"""DTO, end to end (arXiv 2505.21765): sample, segment and probe, cut and finalize, pair, SimPO, examine, report."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.settings import Dto
from reasoning.exam import Role
from reasoning.stories import Split
from tasks.artifacts import ArtifactRef
from tasks.dto import build_pairs, finalize_traces, probe_prefixes, prune_traces
from tasks.problems import draw_problems
from tasks.reporting import Examined, write_report
from tasks.sampling import examine, sample_traces
from tasks.training import train_simpo
from tasks.workplace import Workplace


@flow(name="dto", flow_run_name="dto-{settings.preset}-seed-{settings.seed}", persist_result=False)
def dto(settings: Dto) -> Path:
    """Returns the path of the report."""
    with Workplace("dto", settings.storage, settings.engine) as place:
        return run_dto(place, settings)


def run_dto(place: Workplace, settings: Dto) -> Path:
    """The pipeline in a given workplace."""
    place.save_settings(settings)
    seed = settings.seed
    base = place.model(settings.model)
    problems = draw_problems(place, source=settings.problems, split=Split.TRAIN, seed=seed)
    traces = sample_traces(place, model=base, problems=problems, sampling=settings.sampling, seed=seed)
    scans = probe_prefixes(
        place, model=base, problems=problems, traces=traces, segmentation=settings.segmentation,
        probing=settings.probing, seed=seed,
    )  # fmt: skip
    optimised = finalize_traces(
        place, model=base, problems=problems, traces=traces, scans=scans, finalizing=settings.finalizing, seed=seed
    )
    if settings.pruning.type == "embedded":
        optimised = prune_traces(
            place, model=base, problems=problems, traces=traces, scans=scans, optimised=optimised,
            probing=settings.probing, finalizing=settings.finalizing, seed=seed,
        )  # fmt: skip
    pairs = build_pairs(
        place, model=base, problems=problems, traces=traces, optimised=optimised, pairing=settings.pairing,
        max_length=settings.training.max_length,
    )  # fmt: skip
    policy = train_simpo(place, model=base, pairs=pairs, training=settings.training, seed=seed)

    paper = draw_problems(place, source=settings.benchmark.problems, split=Split.BENCHMARK, seed=seed)
    models: tuple[tuple[str, Role, ArtifactRef], ...] = (("base", "base", base), ("dto", "method", policy))
    examined = [
        Examined(name, role, model, examine(
            place, model=model, problems=paper, sampling=settings.benchmark.sampling, seed=seed
        ))
        for name, role, model in models
    ]  # fmt: skip
    return write_report(place, settings, seed, examined)
