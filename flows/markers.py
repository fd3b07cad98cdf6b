"""Which openings a model's traces really have: the report from which its segment markers are chosen."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.markers import MarkerReport
from reasoning.stories import Split
from tasks.reports.sentence_openers import write_openings
from tasks.runtime.context import RunContext
from tasks.steps.problems import fitting_problems, problems_from
from tasks.steps.sampling import sample_traces
from tasks.steps.sentence_openers import count_openings


@flow(name="markers", flow_run_name="markers-{settings.preset}-seed-{settings.seed}", persist_result=False)
def markers(settings: MarkerReport) -> Path:
    """Returns the path of the report."""
    with RunContext("markers", settings.storage, settings.engine, prompt=settings.prompt) as place:
        return run_markers(place, settings)


def run_markers(place: RunContext, settings: MarkerReport) -> Path:
    """The pipeline in a given workplace. Its traces are those that `dto` would sample with the same settings."""
    place.save_settings(settings)
    drawn = problems_from(place, settings.problems, Split.TRAIN, settings.seed)
    model = place.model(settings.model)
    room = settings.engine.context - settings.sampling.max_tokens
    problems = fitting_problems(place, "problems", drawn, [model], room)
    traces = sample_traces(place, model=model, problems=problems, sampling=settings.sampling, seed=settings.seed)
    counted = count_openings(place, model=model, traces=traces, markers=settings.segmentation.markers)
    return write_openings(place, settings, counted, traces.rows)
