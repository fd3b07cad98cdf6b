"""Controls: other training rows from the same samples, and two ways to think less without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import groupby

from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import FailedRequest
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
from reasoning.sampling_plans import ForwardScanPlan, count_agreeing
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.runtime.step_inputs import StepInputs
from tasks.steps.prefix_sampling import Endings, Finalizer, PrefixSampler, answer_probe, query_prefixes, skipped_rows
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.sampling import failed_counts, sample_and_verify, score, scores_of_failed
from tasks.steps.trace_segments import all_segment_ends, prefix_of


@step()
def contrast_pairs(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Pair: each problem's shortest right trace is chosen, its longest is rejected."""
    prompts, dropped = prompts_of(ctx, model, problems), Counter[str]()
    with RowFile() as pairs:
        for _, of_problem in groupby(ctx.artifacts.stream(traces, Trace), lambda trace: trace.problem_id):
            built, unfit = shortest_longest_pairs(prompts, list(of_problem), max_length)
            pairs.extend(built)
            dropped += unfit
        return ctx.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped))


@step()
def select_pairs(ctx: StepContext, pairs: ArtifactRef, kind: PairKind) -> ArtifactRef:
    """Rows of Pair of one kind."""
    with RowFile() as kept:
        kept.extend(row for row in ctx.artifacts.stream(pairs, Pair) if row.kind is kind)
        return ctx.publish("pairs", kept, rows_in=pairs.rows, dropped={"another-kind": pairs.rows - len(kept)})


RECORD_OF: dict[str, type[OptimisedTrace | CompressedTrace | Trace]] = {
    "optimised": OptimisedTrace,
    "compressed": CompressedTrace,
    "traces": Trace,
}
"""Record class by artifact kind. The `token_ids` of each row are a complete completion."""


@step()
def build_sft_rows(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, completions: ArtifactRef, max_length: int
) -> ArtifactRef:
    """Rows of Demonstration: complete completions to imitate.

    Drops empty completions, and those longer than `max_length` tokens with their prompt.
    """
    prompts, dropped = prompts_of(ctx, model, problems), Counter[str]()
    with RowFile() as kept:
        for row in ctx.artifacts.stream(completions, RECORD_OF[completions.kind]):
            prompt_ids, completion_ids = prompts[row.problem_id], row.token_ids
            if not completion_ids:
                dropped["empty"] += 1
            elif len(prompt_ids) + len(completion_ids) > max_length:
                dropped["too-long"] += 1
            else:
                kept.append(
                    Demonstration(
                        problem_id=row.problem_id,
                        sample=row.sample,
                        prompt_ids=prompt_ids,
                        completion_ids=completion_ids,
                    )
                )
        return ctx.publish("demonstrations", kept, rows_in=completions.rows, dropped=dict(dropped))


@step()
def add_instruction(ctx: StepContext, problems: ArtifactRef, instruction: str) -> ArtifactRef:
    """Rows of Problem: the same problems and ids, with `instruction` appended to each prompt."""
    rows = [
        row.model_copy(update={"prompt": (*row.prompt, InstructionPart(text=f" {instruction}"))})
        for row in ctx.artifacts.rows(problems, Problem)
    ]
    return ctx.publish("problems", rows, rows_in=len(rows))


class EarlyStopInputs(StepInputs):
    """A model, the problems, and the settings for sampling, probing and finalizing."""

    model: ArtifactRef
    problems: ArtifactRef
    sampling: Sampling
    segmentation: Segmentation
    probing: Probing
    finalizing: Finalizing
    seed: int


@step("sampling")
def evaluate_early_stop(ctx: StepContext, inputs: EarlyStopInputs) -> ArtifactRef:
    """Rows of Score: the model's own benchmark completions, each stopped at the first prefix whose probes agree.

    Stopping does not use ground truth. A completion whose probes never agree is not stopped.
    """
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    sampled = sample_and_verify(
        ctx, "benchmark", checkpoint, list(known.values()), inputs.sampling, Purpose.BENCHMARK, inputs.seed
    )
    sampler = PrefixSampler(ctx.resources, checkpoint, known, answer_probe(inputs.probing), inputs.seed)
    cuts = _agreeing_cuts(ctx, sampler, checkpoint, sampled.traces, inputs.segmentation, inputs.probing)
    finalizer = Finalizer(ctx.resources, checkpoint, known, inputs.finalizing, inputs.seed)
    to_stop = [trace for trace in sampled.traces if trace.id in cuts]
    prefixes = [prefix_of(trace, cuts[trace.id]) for trace in to_stop]
    endings = finalizer.sample_endings("early-stop endings", Purpose.EARLY_STOP, prefixes, count=1)
    ending_of = {trace.id: ending for trace, ending in zip(to_stop, endings, strict=True)} | sampler.failed
    stopped = [_stopped(t, cuts.get(t.id, 0), ending_of.get(t.id), checkpoint.end_ids) for t in sampled.traces]
    scores = [score(checkpoint, known[t.problem_id], t, sampler.probe_tokens[t.id]) for t in stopped]
    failed = sampled.failed | {name: ending for name, ending in ending_of.items() if isinstance(ending, FailedRequest)}
    ctx.report_skipped(skipped_rows(failed))
    return ctx.publish(
        "scores",
        scores + scores_of_failed(checkpoint, known, sampled.failed, inputs.sampling),
        rows_in=len(known),
        usage=sampled.usage + sampler.usage + finalizer.usage,
        counts=failed_counts(failed),
    )


def _agreeing_cuts(
    ctx: RunContext,
    sampler: PrefixSampler,
    model: Checkpoint,
    traces: Sequence[Trace],
    segmentation: Segmentation,
    probing: Probing,
) -> dict[str, int]:
    """Tokens up to the first prefix whose probes agree, by trace id.

    Absent: traces whose probes never agree, truncated traces, and traces whose tokens cannot be aligned with text.
    """
    ends_of, _ = all_segment_ends(ctx, model, [trace for trace in traces if not trace.truncated], segmentation)
    # The last segment ends where the model stops by itself.
    inner = {name: ends[:-1] for name, ends in ends_of.items()}
    total, threshold = probing.sampling.samples, probing.threshold
    plans = {
        n: ForwardScanPlan(len(ends), total, threshold, count_successes=count_agreeing) for n, ends in inner.items()
    }
    queries = [query_prefixes(trace, inner[trace.id], plans[trace.id]) for trace in traces if trace.id in plans]
    sampler.run_queries(
        "early stop", Purpose.EARLY_STOP, queries, lambda _, answers: [_normalised_answer(a) for a in answers]
    )
    return {name: inner[name][plan.crossing] for name, plan in plans.items() if plan.crossing is not None}


def _normalised_answer(answer: str | None) -> str | None:
    return answer.strip() or None if answer else None


def _stopped(trace: Trace, end: int, endings: Endings | FailedRequest | None, end_ids: Set[int]) -> Trace:
    """The trace stopped after `end` tokens, with its one sampled ending. `endings` None: the trace is not stopped."""
    if endings is None:
        return trace
    if isinstance(endings, FailedRequest):
        return trace.model_copy(update={"token_ids": TokenIds(), "verdict": Verdict.NO_COMPLETION})
    ((ending, verdict),) = endings
    token_ids = trace.token_ids[:end] + ending
    return trace.model_copy(update={"token_ids": token_ids, "verdict": verdict, "truncated": ending[-1] not in end_ids})
