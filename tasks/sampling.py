"""Completions sampled and verified: traces for curation, scores for examination.

Knows: problems, engines, the answer check. Must not know: what a method makes of the traces.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from conf.settings import Sampling
from models.checkpoint import Checkpoint
from models.engine import Completion, Request
from models.store import Drawn, Purpose
from reasoning.answers import final_answer
from reasoning.records import Problem, Score, Trace, Verdict
from reasoning.verifier import METHOD_VERSION
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.workplace import Workplace


@step(version=f"1.{METHOD_VERSION}")
def sample_traces(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int
) -> ArtifactRef:
    """Rows of Trace, right and wrong ones alike."""
    started = time.monotonic()
    checkpoint, rows = place.checkpoint(model), place.rows(problems, Problem)
    drawn = _draw(place, "sample", checkpoint, rows, sampling, Purpose.TRAIN, seed)
    texts = [[checkpoint.decode(c.token_ids) for c in group] for group in drawn.completions]
    verdicts, checks = place.verdicts(rows, [[final_answer(text) for text in group] for group in texts])
    traces = [
        Trace(
            problem_id=problem.id, sample=sample, token_ids=completion.token_ids, text=text,
            truncated=not completion.finished, verdict=verdict,
        )
        for problem, group, group_texts, group_verdicts in zip(rows, drawn.completions, texts, verdicts, strict=True)
        for sample, (completion, text, verdict) in enumerate(zip(group, group_texts, group_verdicts, strict=True))
    ]  # fmt: skip
    return place.publish("traces", traces, rows_in=len(rows), usage=drawn.usage + checks, started=started)


@step(version=f"1.{METHOD_VERSION}")
def examine(place: Workplace, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int) -> ArtifactRef:
    """Rows of Score on problems that nothing else has read, from samples that nothing else uses."""
    started = time.monotonic()
    checkpoint, rows = place.checkpoint(model), place.rows(problems, Problem)
    drawn = _draw(place, "benchmark", checkpoint, rows, sampling, Purpose.BENCHMARK, seed)
    answers = [[final_answer(checkpoint.decode(c.token_ids)) for c in group] for group in drawn.completions]
    verdicts, checks = place.verdicts(rows, answers)
    scores = [
        _score(checkpoint, problem, sample, completion, verdict)
        for problem, group, judged in zip(rows, drawn.completions, verdicts, strict=True)
        for sample, (completion, verdict) in enumerate(zip(group, judged, strict=True))
    ]
    return place.publish("scores", scores, rows_in=len(rows), usage=drawn.usage + checks, started=started)


def _draw(
    place: Workplace, stage: str, model: Checkpoint, problems: Sequence[Problem], sampling: Sampling,
    purpose: Purpose, seed: int,
) -> Drawn:  # fmt: skip
    requests = [Request(model.prompt_ids(problem), sampling, sampling.samples) for problem in problems]
    return place.draw(stage, model, requests, purpose, seed)


def _score(model: Checkpoint, problem: Problem, sample: int, completion: Completion, verdict: Verdict) -> Score:
    return Score(
        problem_id=problem.id, level=problem.level, sample=sample, prompt_tokens=len(model.prompt_ids(problem)),
        tokens=len(completion.token_ids), truncated=not completion.finished, verdict=verdict,
    )  # fmt: skip
