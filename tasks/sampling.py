"""Completions sampled and verified: traces for curation, scores for examination.

Knows: problems, engines, the answer check. Must not know: what a method makes of the traces.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from conf.settings import Sampling
from models.checkpoint import Checkpoint
from models.engine import Request
from models.store import Purpose
from reasoning.records import Problem, Score, Trace, Usage
from reasoning.thinking import final_answer
from reasoning.verifier import METHOD_VERSION
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.problems import by_id
from tasks.workplace import Workplace


@step(version=f"1.{METHOD_VERSION}")
def sample_traces(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int
) -> ArtifactRef:
    """Rows of Trace, right and wrong ones alike."""
    started = time.monotonic()
    rows = place.rows(problems, Problem)
    traces, usage = draw_traces(place, "sample", place.checkpoint(model), rows, sampling, Purpose.TRAIN, seed)
    return place.publish("traces", traces, rows_in=len(rows), usage=usage, started=started)


@step(version=f"1.{METHOD_VERSION}")
def examine(place: Workplace, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int) -> ArtifactRef:
    """Rows of Score on problems that nothing else has read, from samples that nothing else uses."""
    started = time.monotonic()
    checkpoint, known = place.checkpoint(model), by_id(place, problems)
    traces, usage = draw_traces(place, "benchmark", checkpoint, list(known.values()), sampling, Purpose.BENCHMARK, seed)
    scores = [score(checkpoint, known[trace.problem_id], trace) for trace in traces]
    return place.publish("scores", scores, rows_in=len(known), usage=usage, started=started)


def draw_traces(
    place: Workplace, stage: str, model: Checkpoint, problems: Sequence[Problem], sampling: Sampling,
    purpose: Purpose, seed: int,
) -> tuple[list[Trace], Usage]:  # fmt: skip
    """Completions of `problems`, verified, and what they cost."""
    requests = [Request(model.prompt_ids(problem), sampling, sampling.samples) for problem in problems]
    drawn = place.draw(stage, model, requests, purpose, seed)
    texts = [[model.decode(c.token_ids) for c in group] for group in drawn.completions]
    verdicts, checks = place.verdicts(
        problems, [[final_answer(text, place.prompt.thinking) for text in group] for group in texts]
    )
    traces = [
        Trace(
            problem_id=problem.id, sample=sample, token_ids=completion.token_ids, text=text,
            truncated=not completion.finished, verdict=verdict,
        )
        for problem, group, group_texts, judged in zip(problems, drawn.completions, texts, verdicts, strict=True)
        for sample, (completion, text, verdict) in enumerate(zip(group, group_texts, judged, strict=True))
    ]  # fmt: skip
    return traces, drawn.usage + checks


def score(model: Checkpoint, problem: Problem, trace: Trace, overhead: int = 0) -> Score:
    return Score(
        problem_id=problem.id, level=problem.level, sample=trace.sample,
        prompt_tokens=len(model.prompt_ids(problem)), tokens=len(trace.token_ids) + overhead, overhead=overhead,
        truncated=trace.truncated, verdict=trace.verdict,
    )  # fmt: skip
