"""What a method is worth and what it costs: DTO and its controls over several seeds, pooled."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.settings import Claims
from flows.dto import sit_exam
from tasks.claims import publish_claims, refuse_placeless
from tasks.reporting import write_report
from tasks.workplace import Workplace


@flow(name="claims", flow_run_name="claims-{settings.preset}", persist_result=False)
def claims(settings: Claims) -> Path:
    """Returns the path of the report."""
    with Workplace("claims", settings.dto.storage, settings.dto.engine) as place:
        return run_claims(place, settings)


def run_claims(place: Workplace, settings: Claims) -> Path:
    """The pipeline in a given workplace."""
    refuse_placeless(settings.publish)
    place.save_settings(settings)
    exams = [sit_exam(place, settings.dto.model_copy(update={"seed": seed})) for seed in settings.seeds]
    report = write_report(place, settings, exams)
    publish_claims(place, report, settings.publish)
    return place.report
