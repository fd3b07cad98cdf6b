"""What DTO is compared with: other pairs from the same samples, and ways to think less without training.

Knows: records and the steps that they share with DTO. Must not know: which controls a run wants.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Set

from conf.settings import Finalizing, Probing, Sampling, Segmentation
from models.store import Purpose
from reasoning.dto import shortest_longest_pairs
from reasoning.records import (
    Compressed,
    Demonstration,
    InstructionPart,
    Optimised,
    Pair,
    PairKind,
    Problem,
    Trace,
    Verdict,
)
from reasoning.rollouts import EarliestCrossing, agreeing_ones
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.dto import VERSION, cut, segment_ends
from tasks.problems import by_id, prompts_of
from tasks.rollouts import Ender, Prober, TokenIds, closed, on_prefixes
from tasks.sampling import draw_traces, score
from tasks.workplace import Workplace


@step(version=VERSION)
def contrast_pairs(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Pair: each problem's shortest right trace against its longest."""
    started = time.monotonic()
    prompts = prompts_of(place, model, problems)
    pairs, dropped = shortest_longest_pairs(prompts, place.rows(traces, Trace), max_length)
    return place.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped), started=started)


@step(version="1")
def select_pairs(place: Workplace, pairs: ArtifactRef, kind: PairKind) -> ArtifactRef:
    """Rows of Pair of one kind."""
    started = time.monotonic()
    rows = place.rows(pairs, Pair)
    kept = [row for row in rows if row.kind is kind]
    return place.publish(
        "pairs", kept, rows_in=len(rows), dropped={"another-kind": len(rows) - len(kept)}, started=started
    )


KINDS: dict[str, type[Optimised | Compressed | Trace]] = {
    "optimised": Optimised, "compressed": Compressed, "traces": Trace,
}  # fmt: skip
"""Rows whose token ids are a whole completion."""


@step(version="1")
def demonstrations(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, completions: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Demonstration: completions to be imitated, whole. Longer ones and empty ones are refused."""
    started = time.monotonic()
    prompts = prompts_of(place, model, problems)
    rows = [
        Demonstration(
            problem_id=row.problem_id, sample=row.sample, prompt_ids=prompts[row.problem_id],
            completion_ids=row.token_ids,
        )
        for row in place.rows(completions, KINDS[completions.kind])
    ]  # fmt: skip
    whole = [row for row in rows if row.completion_ids]
    kept = [row for row in whole if len(row.prompt_ids) + len(row.completion_ids) <= max_length]
    dropped = Counter({"empty": len(rows) - len(whole), "too-long": len(whole) - len(kept)})
    return place.publish("demonstrations", kept, rows_in=len(rows), dropped=dict(+dropped), started=started)


@step(version="1")
def instruct(place: Workplace, problems: ArtifactRef, instruction: str) -> ArtifactRef:
    """The same problems, by the same ids, with an instruction after each."""
    started = time.monotonic()
    rows = [
        row.model_copy(update={"prompt": (*row.prompt, InstructionPart(text=f" {instruction}"))})
        for row in place.rows(problems, Problem)
    ]
    return place.publish("problems", rows, rows_in=len(rows), started=started)


@step(version=VERSION)
def examine_early_stop(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, segmentation: Segmentation,
    probing: Probing, finalizing: Finalizing, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Score: the model's own benchmark completions, each stopped where its probes agree with one another.

    No right answer is looked at before the end, as none is known in use.
    """
    started = time.monotonic()
    checkpoint, known = place.checkpoint(model), by_id(place, problems)
    traces, usage = draw_traces(place, "benchmark", checkpoint, list(known.values()), sampling, Purpose.BENCHMARK, seed)
    # The end of the last segment is where the model stops by itself; a truncated trace is left as it is.
    whole = [trace for trace in traces if not trace.truncated]
    ends_of = {trace.id: segment_ends(checkpoint, trace, segmentation)[:-1] for trace in whole}
    total, threshold = probing.sampling.samples, probing.threshold
    plans = {
        trace.id: EarliestCrossing(len(ends_of[trace.id]), total, threshold, speaking=agreeing_ones) for trace in whole
    }
    prober = Prober(place, checkpoint, known, closed(probing), seed)
    asked = [on_prefixes(trace, ends_of[trace.id], plans[trace.id]) for trace in whole]
    prober.carry_out("early stop", Purpose.EARLY_STOP, asked, lambda _, answers: [_given(a) for a in answers])
    ends = {n: ends_of[n][plan.crossing] for n, plan in plans.items() if plan.crossing is not None}
    overhead = prober.probe_tokens
    ender = Ender(place, checkpoint, known, finalizing, seed)
    stopped = [trace for trace in traces if trace.id in ends]
    endings = ender.endings("early end", Purpose.EARLY_STOP, [cut(trace, ends[trace.id]) for trace in stopped], count=1)
    ended = {trace.id: ending for trace, (ending,) in zip(stopped, endings, strict=True)}
    scores = [
        score(checkpoint, known[trace.problem_id], _stopped(trace, ends, ended, checkpoint.end_ids), overhead[trace.id])
        for trace in traces
    ]
    usage = usage + prober.usage + ender.usage
    return place.publish("scores", scores, rows_in=len(known), usage=usage, started=started)


def _given(answer: str | None) -> str | None:
    return answer.strip() or None if answer else None


def _stopped(
    trace: Trace, ends: Mapping[str, int], ended: Mapping[str, tuple[TokenIds, Verdict]], end_ids: Set[int]
) -> Trace:
    """The trace as it reads when it is stopped; itself when its probes never agreed."""
    if trace.id not in ended:
        return trace
    ending, verdict = ended[trace.id]
    token_ids = trace.token_ids[: ends[trace.id]] + ending
    return trace.model_copy(update={"token_ids": token_ids, "verdict": verdict, "truncated": ending[-1] not in end_ids})
