"""What a method is worth and what it costs: a pipeline and its controls over several seeds, pooled."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.claims import Claims
from conf.long_short import LongShort
from conf.settings import Dto
from flows import cot_distillation, dto, long_short
from tasks.claims import publish_claims, refuse_placeless
from tasks.reporting import Exam, write_report
from tasks.workplace import Workplace


@flow(name="claims", flow_run_name="claims-{settings.preset}", persist_result=False)
def claims(settings: Claims) -> Path:
    """Returns the path of the report."""
    with Workplace("claims", settings.of.storage, settings.of.engine) as place:
        return run_claims(place, settings)


def run_claims(place: Workplace, settings: Claims) -> Path:
    """The pipeline in a given workplace."""
    refuse_placeless(settings.publish, settings.of.pipeline)
    place.save_settings(settings)
    report = write_report(place, settings, [_exam(place, settings, seed) for seed in settings.seeds])
    publish_claims(place, report, settings.publish, settings.of.pipeline)
    return place.report


def _exam(place: Workplace, settings: Claims, seed: int) -> Exam:
    one = settings.of.model_copy(update={"seed": seed})
    if isinstance(one, Dto):
        return dto.sit_exam(place, one)
    if isinstance(one, LongShort):
        return long_short.sit_exam(place, one)
    return cot_distillation.sit_exam(place, one)
