"""Marker report: how the sentences of a model's traces begin. Helps to choose segment markers."""

from __future__ import annotations

from pathlib import Path

from conf.markers import MarkerReport
from flows.pipeline import pipeline
from reasoning.stories import Split
from tasks.reports.sentence_openers import write_sentence_openers
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.problems import filter_by_prompt_length, load_problems
from tasks.steps.sampling import sample_traces
from tasks.steps.sentence_openers import count_sentence_openers


def run_markers(ctx: RunContext, settings: MarkerReport) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the report.

    The traces are those that `dto` samples with the same settings.
    """
    ctx.directory.save_settings(settings)
    return write_sentence_openers(ctx, settings, *count_openers(ctx, settings))


def count_openers(ctx: RunContext, settings: MarkerReport) -> tuple[ArtifactRef, int]:
    """Samples traces and counts how their sentences begin. Rows of SentenceOpener, and the number of traces."""
    loaded = load_problems(ctx, settings.problems, Split.TRAIN, settings.seed)
    model = ctx.resources.model(settings.model)
    room = settings.engine.max_model_len - settings.sampling.max_tokens
    problems = filter_by_prompt_length(ctx, "problems", loaded, [model], room)
    traces = sample_traces(ctx, model=model, problems=problems, sampling=settings.sampling, seed=settings.seed)
    openers = count_sentence_openers(ctx, model=model, traces=traces, markers=settings.segmentation.markers)
    return openers, traces.rows


markers = pipeline(MarkerReport, run_markers)
