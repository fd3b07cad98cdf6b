"""A pipeline with its controls over several seeds, with pooled results."""

from __future__ import annotations

from pathlib import Path

from conf.dto import Dto
from conf.long_short import LongShort
from conf.multi_seed import MultiSeed
from flows import cot_distillation, dto, long_short
from flows.pipeline import pipeline
from tasks.reports.multi_seed import load_earlier_results, publish_report, publish_seed_result, validate_markers
from tasks.reports.page.run_page import write_run_page
from tasks.reports.report import write_report
from tasks.reports.seed_results import ExperimentResult, Pipeline, SeedResult, build_seed_result
from tasks.runtime.context import RunContext


def run_multi_seed(ctx: RunContext, settings: MultiSeed) -> Path:
    """Runs all seeds in a given run context. Returns the path of the report.

    Publishes each seed's result as soon as it is complete.
    """
    validate_markers(settings.publish_dir, settings.preset)
    earlier = load_earlier_results(ctx, settings)
    ctx.directory.save_settings(settings)
    results: list[SeedResult] = []
    for seed in settings.seeds:
        results.append(earlier.get(seed) or evaluate_seed(ctx, settings, seed))
        publish_seed_result(ctx, results[-1], settings.publish_dir, settings.preset)
    report = write_report(ctx, settings, results)
    publish_report(ctx, report, settings.publish_dir, settings.preset)
    write_run_page(ctx, settings.of, report, None)
    return ctx.directory.report


def evaluate_seed(ctx: RunContext, settings: MultiSeed, seed: int) -> SeedResult:
    """Runs the pipeline with one seed."""
    one_seed = settings.of.model_copy(update={"seed": seed})
    since = len(ctx.ledger), len(ctx.ledger.warnings)
    return build_seed_result(ctx, one_seed, run_experiment(ctx, one_seed), since)


def run_experiment(ctx: RunContext, settings: Pipeline) -> ExperimentResult:
    """Runs the experiment of the pipeline that the settings are for."""
    if isinstance(settings, Dto):
        return dto.run_experiment(ctx, settings)
    if isinstance(settings, LongShort):
        return long_short.run_experiment(ctx, settings)
    return cot_distillation.run_experiment(ctx, settings)


multi_seed = pipeline(MultiSeed, run_multi_seed)
