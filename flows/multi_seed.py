"""What a method is worth and what it costs: a pipeline and its controls over several seeds, pooled."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.dto import Dto
from conf.long_short import LongShort
from conf.multi_seed import Claims
from flows import cot_distillation, dto, long_short
from tasks.reports.multi_seed import earlier_outcomes, publish_claims, publish_outcome, refuse_placeless
from tasks.reports.report import write_report
from tasks.reports.seed_results import Exam, Outcome, Pipeline, outcome_of
from tasks.runtime.context import RunContext


@flow(name="claims", flow_run_name="claims-{settings.preset}", persist_result=False)
def claims(settings: Claims) -> Path:
    """Returns the path of the report."""
    with RunContext("claims", settings.of.storage, settings.of.engine, prompt=settings.of.prompt) as place:
        return run_claims(place, settings)


def run_claims(place: RunContext, settings: Claims) -> Path:
    """The pipeline in a given workplace."""
    refuse_placeless(settings.publish, settings.of.pipeline)
    earlier = earlier_outcomes(place, settings)
    place.save_settings(settings)
    outcomes: list[Outcome] = []
    for seed in settings.seeds:
        outcomes.append(earlier.get(seed) or examine_seed(place, settings, seed))
        publish_outcome(place, outcomes[-1], settings.publish)
    report = write_report(place, settings, outcomes)
    publish_claims(place, report, settings.publish, settings.of.pipeline)
    return place.report


def examine_seed(place: RunContext, settings: Claims, seed: int) -> Outcome:
    """Runs the pipeline."""
    one, since = settings.of.model_copy(update={"seed": seed}), (len(place.ledger), len(place.warnings))
    return outcome_of(place, one, _exam(place, one), since)


def _exam(place: RunContext, one: Pipeline) -> Exam:
    if isinstance(one, Dto):
        return dto.sit_exam(place, one)
    if isinstance(one, LongShort):
        return long_short.sit_exam(place, one)
    return cot_distillation.sit_exam(place, one)
