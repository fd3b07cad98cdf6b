"""What DTO is compared with: other pairs from the same samples, and ways to think less without training.

Knows: records and the steps that they share with DTO. Must not know: which controls a run wants.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence, Set

from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Refused
from models.inference.rollout_store import Purpose
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
from reasoning.sampling_plans import EarliestCrossing, agreeing_ones
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext
from tasks.steps.dto import all_segment_ends, cut
from tasks.steps.prefix_sampling import Ender, Endings, Prober, closed, on_prefixes, set_aside
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.sampling import draw_traces, failed_counts, score, scores_without


@step
def contrast_pairs(
    place: RunContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Pair: each problem's shortest right trace against its longest."""
    started = time.monotonic()
    prompts = prompts_of(place, model, problems)
    pairs, dropped = shortest_longest_pairs(prompts, place.rows(traces, Trace), max_length)
    return place.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped), started=started)


@step
def select_pairs(place: RunContext, pairs: ArtifactRef, kind: PairKind) -> ArtifactRef:
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


@step
def demonstrations(
    place: RunContext, model: ArtifactRef, problems: ArtifactRef, completions: ArtifactRef, max_length: int
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


@step
def instruct(place: RunContext, problems: ArtifactRef, instruction: str) -> ArtifactRef:
    """The same problems, by the same ids, with an instruction after each."""
    started = time.monotonic()
    rows = [
        row.model_copy(update={"prompt": (*row.prompt, InstructionPart(text=f" {instruction}"))})
        for row in place.rows(problems, Problem)
    ]
    return place.publish("problems", rows, rows_in=len(rows), started=started)


@step
def examine_early_stop(
    place: RunContext, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, segmentation: Segmentation,
    probing: Probing, finalizing: Finalizing, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Score: the model's own benchmark completions, each stopped where its probes agree with one another.

    No right answer is looked at before the end, as none is known in use.
    """
    started = time.monotonic()
    checkpoint, known = place.checkpoint(model), by_id(place, problems)
    drawn = draw_traces(place, "benchmark", checkpoint, list(known.values()), sampling, Purpose.BENCHMARK, seed)
    prober = Prober(place, checkpoint, known, closed(probing), seed)
    cuts = _agreeing_cuts(place, prober, checkpoint, drawn.traces, segmentation, probing)
    ender = Ender(place, checkpoint, known, finalizing, seed)
    stopped = [trace for trace in drawn.traces if trace.id in cuts]
    endings = ender.endings("early end", Purpose.EARLY_STOP, [cut(trace, cuts[trace.id]) for trace in stopped], count=1)
    ended = {trace.id: found for trace, found in zip(stopped, endings, strict=True)} | prober.refused
    stops = [_stopped(t, cuts.get(t.id, 0), ended.get(t.id), checkpoint.end_ids) for t in drawn.traces]
    scores = [score(checkpoint, known[t.problem_id], t, prober.probe_tokens[t.id]) for t in stops]
    refused = drawn.refused | {name: found for name, found in ended.items() if isinstance(found, Refused)}
    place.list_set_aside(set_aside(refused))
    return place.publish(
        "scores", scores + scores_without(checkpoint, known, drawn.refused, sampling), rows_in=len(known),
        usage=drawn.usage + prober.usage + ender.usage, started=started, counts=failed_counts(refused),
    )  # fmt: skip


def _agreeing_cuts(
    place: RunContext, prober: Prober, model: Checkpoint, traces: Sequence[Trace], segmentation: Segmentation,
    probing: Probing,
) -> dict[str, int]:  # fmt: skip
    """Tokens up to the first prefix whose probes agree, by trace id. A truncated trace is left as it is, and so is one
    that cannot be cut."""
    ends_of, _ = all_segment_ends(place, model, [trace for trace in traces if not trace.truncated], segmentation)
    # The end of the last segment is where the model stops by itself.
    inner = {name: ends[:-1] for name, ends in ends_of.items()}
    total, threshold = probing.sampling.samples, probing.threshold
    plans = {n: EarliestCrossing(len(ends), total, threshold, speaking=agreeing_ones) for n, ends in inner.items()}
    asked = [on_prefixes(trace, inner[trace.id], plans[trace.id]) for trace in traces if trace.id in plans]
    prober.carry_out("early stop", Purpose.EARLY_STOP, asked, lambda _, answers: [_given(a) for a in answers])
    return {name: inner[name][plan.crossing] for name, plan in plans.items() if plan.crossing is not None}


def _given(answer: str | None) -> str | None:
    return answer.strip() or None if answer else None


def _stopped(trace: Trace, end: int, ended: Endings | Refused | None, end_ids: Set[int]) -> Trace:
    """The trace as it reads when it is stopped after `end` tokens; itself when its probes never agreed (None)."""
    if ended is None:
        return trace
    if isinstance(ended, Refused):
        return trace.model_copy(update={"token_ids": (), "verdict": Verdict.NO_COMPLETION})
    ((ending, verdict),) = ended
    token_ids = trace.token_ids[:end] + ending
    return trace.model_copy(update={"token_ids": token_ids, "verdict": verdict, "truncated": ending[-1] not in end_ids})
