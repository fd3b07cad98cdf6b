"""What DTO is compared with: other pairs from the same samples, and ways to think less without training.

Knows: records and the steps that they share with DTO. Must not know: which controls a run wants.
"""

from __future__ import annotations

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
    CompressedTrace,
    Demonstration,
    InstructionPart,
    OptimisedTrace,
    Pair,
    PairKind,
    Problem,
    Trace,
    Verdict,
)
from reasoning.sampling_plans import EarliestCrossing, count_agreeing
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import StepInputs, step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.dto import all_segment_ends, cut
from tasks.steps.prefix_sampling import Endings, Finalizer, PrefixSampler, answer_probe, query_prefixes, skipped_rows
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.sampling import failed_counts, sample_and_verify, score, scores_of_failed


@step
def contrast_pairs(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Pair: each problem's shortest right trace against its longest."""
    prompts = prompts_of(ctx, model, problems)
    pairs, dropped = shortest_longest_pairs(prompts, ctx.artifacts.rows(traces, Trace), max_length)
    return ctx.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped))


@step
def select_pairs(ctx: StepContext, pairs: ArtifactRef, kind: PairKind) -> ArtifactRef:
    """Rows of Pair of one kind."""
    rows = ctx.artifacts.rows(pairs, Pair)
    kept = [row for row in rows if row.kind is kind]
    return ctx.publish("pairs", kept, rows_in=len(rows), dropped={"another-kind": len(rows) - len(kept)})


KINDS: dict[str, type[OptimisedTrace | CompressedTrace | Trace]] = {
    "optimised": OptimisedTrace,
    "compressed": CompressedTrace,
    "traces": Trace,
}
"""Rows whose token ids are a whole completion."""


@step
def build_sft_rows(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, completions: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Demonstration: completions to be imitated, whole. Longer ones and empty ones are refused."""
    prompts = prompts_of(ctx, model, problems)
    rows = [
        Demonstration(
            problem_id=row.problem_id,
            sample=row.sample,
            prompt_ids=prompts[row.problem_id],
            completion_ids=row.token_ids,
        )
        for row in ctx.artifacts.rows(completions, KINDS[completions.kind])
    ]
    whole = [row for row in rows if row.completion_ids]
    kept = [row for row in whole if len(row.prompt_ids) + len(row.completion_ids) <= max_length]
    dropped = Counter({"empty": len(rows) - len(whole), "too-long": len(whole) - len(kept)})
    return ctx.publish("demonstrations", kept, rows_in=len(rows), dropped=dict(+dropped))


@step
def add_instruction(ctx: StepContext, problems: ArtifactRef, instruction: str) -> ArtifactRef:
    """The same problems, by the same ids, with an instruction after each."""
    rows = [
        row.model_copy(update={"prompt": (*row.prompt, InstructionPart(text=f" {instruction}"))})
        for row in ctx.artifacts.rows(problems, Problem)
    ]
    return ctx.publish("problems", rows, rows_in=len(rows))


class EarlyStopInputs(StepInputs):
    """A model, the problems, and how completions are sampled, probed and finished."""

    model: ArtifactRef
    problems: ArtifactRef
    sampling: Sampling
    segmentation: Segmentation
    probing: Probing
    finalizing: Finalizing
    seed: int


@step
def evaluate_early_stop(
    ctx: StepContext,
    inputs: EarlyStopInputs,
) -> ArtifactRef:
    """Rows of Score: the model's own benchmark completions, each stopped where its probes agree with one another.

    No right answer is looked at before the end, as none is known in use.
    """
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    drawn = sample_and_verify(
        ctx, "benchmark", checkpoint, list(known.values()), inputs.sampling, Purpose.BENCHMARK, inputs.seed
    )
    sampler = PrefixSampler(ctx.resources, checkpoint, known, answer_probe(inputs.probing), inputs.seed)
    cuts = _agreeing_cuts(ctx, sampler, checkpoint, drawn.traces, inputs.segmentation, inputs.probing)
    finalizer = Finalizer(ctx.resources, checkpoint, known, inputs.finalizing, inputs.seed)
    stopped = [trace for trace in drawn.traces if trace.id in cuts]
    endings = finalizer.sample_endings(
        "early end", Purpose.EARLY_STOP, [cut(trace, cuts[trace.id]) for trace in stopped], count=1
    )
    ended = {trace.id: found for trace, found in zip(stopped, endings, strict=True)} | sampler.refused
    stops = [_stopped(t, cuts.get(t.id, 0), ended.get(t.id), checkpoint.end_ids) for t in drawn.traces]
    scores = [score(checkpoint, known[t.problem_id], t, sampler.probe_tokens[t.id]) for t in stops]
    refused = drawn.refused | {name: found for name, found in ended.items() if isinstance(found, Refused)}
    ctx.report_skipped(skipped_rows(refused))
    return ctx.publish(
        "scores",
        scores + scores_of_failed(checkpoint, known, drawn.refused, inputs.sampling),
        rows_in=len(known),
        usage=drawn.usage + sampler.usage + finalizer.usage,
        counts=failed_counts(refused),
    )


def _agreeing_cuts(
    ctx: RunContext,
    sampler: PrefixSampler,
    model: Checkpoint,
    traces: Sequence[Trace],
    segmentation: Segmentation,
    probing: Probing,
) -> dict[str, int]:
    """Tokens up to the first prefix whose probes agree, by trace id. A truncated trace is left as it is, and so is one
    that cannot be cut."""
    ends_of, _ = all_segment_ends(ctx, model, [trace for trace in traces if not trace.truncated], segmentation)
    # The end of the last segment is where the model stops by itself.
    inner = {name: ends[:-1] for name, ends in ends_of.items()}
    total, threshold = probing.sampling.samples, probing.threshold
    plans = {
        n: EarliestCrossing(len(ends), total, threshold, count_successes=count_agreeing) for n, ends in inner.items()
    }
    asked = [query_prefixes(trace, inner[trace.id], plans[trace.id]) for trace in traces if trace.id in plans]
    sampler.run_queries(
        "early stop", Purpose.EARLY_STOP, asked, lambda _, answers: [_normalised_answer(a) for a in answers]
    )
    return {name: inner[name][plan.crossing] for name, plan in plans.items() if plan.crossing is not None}


def _normalised_answer(answer: str | None) -> str | None:
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
