"""CoT distillation's own steps: select, value, rate, compress, pair (arXiv 2509.05226).

The rules themselves are in `reasoning`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from conf.cot_distillation import EndpointTeacher, LengthBudget, LlmCompressor, LlmRater, TraceSelection
from conf.llm import Llm
from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import FailedRequest
from models.inference.rollout_store import Purpose
from reasoning import compression, difficulty
from reasoning.dto import shortest_right
from reasoning.llm_queries import InvalidReply, LlmQuery, Solution, with_token_limit
from reasoning.pairs import distillation_pairs, fit_pairs
from reasoning.records import CompressedTrace, PrefixValues, Problem, Rating, Trace, Usage, Verdict, by_trace
from reasoning.thinking import CLOSE_THINK, final_answer, thinking_of, thought_of, written_as
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import StepInputs, step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import Finalizer, Prefix, PrefixSampler, answer_probe, skipped_rows
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.trace_segments import all_segment_ends

SAMPLE_STRIDE = 1_000_000
"""Distance between the sample numbers of two seeds, so that seeds share no endpoint replies."""


@step()
def import_traces(ctx: StepContext, model: ArtifactRef, traces: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: another model's traces, encoded in the token ids of `model`."""
    checkpoint, rows = ctx.resources.checkpoint(model), ctx.artifacts.rows(traces, Trace)
    end = (checkpoint.end_id,)
    encoded = [
        row.model_copy(update={"token_ids": checkpoint.encode(row.text) + end * (not row.truncated)}) for row in rows
    ]
    return ctx.publish("traces", encoded, rows_in=len(rows))


def _trace_query(teacher: EndpointTeacher, problem: Problem, sampling: Sampling, sample: int) -> LlmQuery[Solution]:
    return LlmQuery(
        teacher.instruction,
        problem.text,
        Solution,
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sample=sample,
        limit="sampling.max_tokens",
    )


@step("llm")
def write_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    teacher: EndpointTeacher,
    sampling: Sampling,
    seed: int,
) -> ArtifactRef:
    """Rows of Trace: written by an endpoint, encoded in the token ids of `model`.

    Raises TooManyInvalidReplies, and what the client of `teacher.llm` raises.
    """
    checkpoint, known = ctx.resources.checkpoint(model), list(by_id(ctx, problems).values())
    tags = checkpoint.prompt.thinking
    queries = [
        _trace_query(teacher, problem, sampling, seed * SAMPLE_STRIDE + sample)
        for problem in known
        for sample in range(sampling.samples)
    ]
    answers = query_llm(ctx, teacher.llm, "write traces", queries, teacher.max_invalid_fraction)
    valid = [
        (problem, sample, reply)
        for (problem, sample), reply in zip(product(known, range(sampling.samples)), answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    plain = [
        (problem, sample, reply, written_as(reply.text, tags))
        for problem, sample, reply in valid
        if not checkpoint.holds_control(thought_of(reply.text).replace(CLOSE_THINK, "", 1))
    ]
    verdicts, checks = ctx.resources.verdicts(
        [problem for problem, *_ in plain], [[final_answer(text, tags)] for *_, text in plain]
    )
    rows = [
        Trace(
            problem_id=problem.id,
            sample=sample,
            text=text,
            truncated=reply.truncated,
            verdict=verdict,
            token_ids=checkpoint.encode(text) + (checkpoint.end_id,) * (not reply.truncated),
        )
        for (problem, sample, reply, text), (verdict,) in zip(plain, verdicts, strict=True)
    ]
    dropped = answers.invalid + Counter({"control-token": len(valid) - len(plain)})
    return ctx.publish(
        "traces",
        rows,
        rows_in=len(queries),
        dropped=dict(+dropped),
        usage=answers.usage + checks,
        billed_to=answers.billed_to,
    )


@step()
def select_traces(ctx: StepContext, traces: ArtifactRef, selection: TraceSelection) -> ArtifactRef:
    """Rows of Trace: up to `selection.max_traces` right, untruncated traces of each problem."""
    rows = ctx.artifacts.rows(traces, Trace)
    right: dict[str, list[Trace]] = defaultdict(list)
    for row in rows:
        if row.verdict is Verdict.RIGHT and not row.truncated:
            right[row.problem_id].append(row)
    sign = {"as-drawn": 0, "shortest": 1, "longest": -1}[selection.order]
    selected = [
        row
        for group in right.values()
        for row in sorted(group, key=lambda row: sign * len(row.token_ids))[: selection.max_traces]
    ]
    total_right = sum(map(len, right.values()))
    dropped = Counter({"not-right": len(rows) - total_right, "not-selected": total_right - len(selected)})
    counts = {"problems": len({row.problem_id for row in rows}), "problems with a right trace": len(right)}
    return ctx.publish("traces", selected, rows_in=len(rows), dropped=dict(+dropped), counts=counts)


@step("sampling")
def estimate_prefix_values(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    segmentation: Segmentation,
    probing: Probing,
    seed: int,
) -> ArtifactRef:
    """Rows of PrefixValues: right rollouts of every prefix, and of no thinking at all. Raises TooManyFailed."""
    checkpoint, rows = ctx.resources.checkpoint(model), ctx.artifacts.rows(traces, Trace)
    ends_of, undecodable = all_segment_ends(ctx, checkpoint, rows, segmentation)
    ends = {name: [0, *segments] for name, segments in ends_of.items()}
    sampler = PrefixSampler(ctx.resources, checkpoint, by_id(ctx, problems), answer_probe(probing), seed)
    values = sampler.estimate_values("estimate prefix values", [row for row in rows if row.id in ends], ends)
    return ctx.publish(
        "values",
        values,
        rows_in=len(rows),
        usage=sampler.usage,
        skipped=undecodable + skipped_rows(sampler.failed),
    )


@step()
def rate_by_effort(ctx: StepContext, traces: ArtifactRef, values: ArtifactRef, threshold: float) -> ArtifactRef:
    """Rows of Rating, one for each problem with estimated values.

    The effort of a problem follows from its share of right traces, and from the tokens that its traces need until a
    prefix is right more often than `threshold`.
    """
    sampled, right = Counter[str](), Counter[str]()
    for row in ctx.artifacts.rows(traces, Trace):
        sampled[row.problem_id] += 1
        right[row.problem_id] += row.verdict is Verdict.RIGHT
    needed: dict[str, list[int]] = defaultdict(list)
    for row in ctx.artifacts.rows(values, PrefixValues):
        needed[row.problem_id].append(row.needed(threshold))
    efforts = {
        name: difficulty.effort(right[name], sampled[name], sum(lengths) / len(lengths))
        for name, lengths in needed.items()
    }
    ratings = [Rating(problem_id=name, level=level) for name, level in difficulty.levels(efforts).items()]
    return ctx.publish("ratings", ratings, rows_in=len(needed))


@step("llm")
def rate_by_llm(ctx: StepContext, problems: ArtifactRef, traces: ArtifactRef, rater: LlmRater, llm: Llm) -> ArtifactRef:
    """Rows of Rating, one for each problem with a trace, by an auxiliary model.

    Raises TooManyInvalidReplies, and what the client of `llm` raises.
    """
    known, names = by_id(ctx, problems), {row.problem_id: None for row in ctx.artifacts.rows(traces, Trace)}
    queries = [difficulty.difficulty_query(known[name]) for name in names]
    queries = with_token_limit(queries, rater.max_tokens, "rating.max_tokens")
    answers = query_llm(ctx, llm, "rate", queries, rater.max_invalid_fraction)
    ratings = [
        Rating(problem_id=name, level=reply.level)
        for name, reply in zip(names, answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    return ctx.publish(
        "ratings",
        ratings,
        rows_in=len(names),
        dropped=answers.invalid,
        usage=answers.usage,
        billed_to=answers.billed_to,
    )


@step()
def permute_ratings(ctx: StepContext, ratings: ArtifactRef, seed: int) -> ArtifactRef:
    """Rows of Rating: the same levels, shuffled among the problems. A control."""
    rows = ctx.artifacts.rows(ratings, Rating)
    levels = [row.level for row in rows]
    random.Random(f"exchange/{seed}").shuffle(levels)
    shuffled = [Rating(problem_id=row.problem_id, level=level) for row, level in zip(rows, levels, strict=True)]
    return ctx.publish("ratings", shuffled, rows_in=len(rows))


class CompressedThinking(NamedTuple):
    """Compressed thinking of a trace, without its ending."""

    trace: Trace
    level: int
    token_ids: TokenIds
    kept: tuple[int, ...] = ()
    """Indices of the kept segments; empty for thinking that a language model rewrote."""


class CompressionInputs(StepInputs):
    """Rated traces, the length budget of each level, and the settings for finalizing."""

    model: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    ratings: ArtifactRef
    budget: LengthBudget
    finalizing: Finalizing
    seed: int


@step("sampling")
def compress_by_value(ctx: StepContext, inputs: CompressionInputs, values: ArtifactRef) -> ArtifactRef:
    """Rows of CompressedTrace: the segments that contribute most, as many as the level's budget allows.

    Raises TooManyFailed.
    """
    jobs, dropped = _compression_jobs(ctx, inputs)
    values_of = by_trace(ctx.artifacts.rows(values, PrefixValues))
    compressed = []
    for trace, level, max_tokens in jobs:
        row = values_of.get((trace.problem_id, trace.sample))
        if row is None:
            dropped["no-values"] += 1
            continue
        kept = compression.kept_segments(row.values, row.lengths, max_tokens)
        parts = (trace.token_ids[row.ends[index] : row.ends[index + 1]] for index in kept)
        compressed.append(CompressedThinking(trace, level, TokenIds.join(parts), kept))
    fitting = [thinking for thinking in compressed if thinking.kept]
    dropped["over-budget"] += len(compressed) - len(fitting)
    return _finalize_and_filter(ctx, inputs, fitting, dropped, Usage())


@step("llm")
def compress_by_llm(ctx: StepContext, inputs: CompressionInputs, compressor: LlmCompressor, llm: Llm) -> ArtifactRef:
    """Rows of CompressedTrace: thinking rewritten by an auxiliary model.

    Raises TooManyInvalidReplies, TooManyFailed, and what the client of `llm` raises.
    """
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    jobs, dropped = _compression_jobs(ctx, inputs)
    queries = [
        compression.compression_query(
            known[trace.problem_id], thinking_of(trace.text, checkpoint.prompt.thinking), max(1, round(max_tokens))
        )
        for trace, _, max_tokens in jobs
    ]
    queries = with_token_limit(queries, compressor.max_tokens, "compression.by.max_tokens")
    answers = query_llm(ctx, llm, "compress", queries, compressor.max_invalid_fraction)
    dropped += answers.invalid
    line_break = "" if inputs.finalizing.closing_text.startswith("\n") else "\n"
    compressed = []
    for (trace, level, max_tokens), reply in zip(jobs, answers.replies, strict=True):
        if isinstance(reply, InvalidReply):
            continue
        token_ids = checkpoint.encode(reply.thinking.strip() + line_break)
        if reason := _invalid_reason(checkpoint, reply.thinking, len(token_ids), compressor.slack * max_tokens):
            dropped[reason] += 1
        else:
            compressed.append(CompressedThinking(trace, level, token_ids))
    return _finalize_and_filter(ctx, inputs, compressed, dropped, answers.usage, answers.billed_to)


def _invalid_reason(checkpoint: Checkpoint, text: str, tokens: int, max_tokens: float) -> str:
    """Why rewritten thinking cannot be used; empty when it can."""
    if not text.strip():
        return "empty"
    if checkpoint.holds_control(text):
        return "control-token"
    return "over-budget" if tokens > max_tokens else ""


class CompressionJob(NamedTuple):
    """A trace to compress."""

    trace: Trace
    level: int
    max_tokens: float
    """Token budget of its thinking."""


def _compression_jobs(ctx: RunContext, inputs: CompressionInputs) -> tuple[list[CompressionJob], Counter[str]]:
    """Traces longer than their level's budget, and counts of the others by reason."""
    checkpoint, rows = ctx.resources.checkpoint(inputs.model), ctx.artifacts.rows(inputs.traces, Trace)
    level_of = {row.problem_id: row.level for row in ctx.artifacts.rows(inputs.ratings, Rating)}
    rated = [(row, level_of[row.problem_id]) for row in rows if row.problem_id in level_of]
    jobs = []
    for trace, level in rated:
        tokens = len(checkpoint.encode(thinking_of(trace.text, checkpoint.prompt.thinking)))
        max_tokens = inputs.budget.tokens(level, tokens)
        if max_tokens < tokens:
            jobs.append(CompressionJob(trace, level, max_tokens))
    return jobs, Counter({"unrated": len(rows) - len(rated), "within-budget": len(rated) - len(jobs)})


def _finalize_and_filter(
    ctx: StepContext,
    inputs: CompressionInputs,
    compressed: Sequence[CompressedThinking],
    dropped: Counter[str],
    usage: Usage,
    billed_to: str = "",
) -> ArtifactRef:
    """Samples endings and publishes rows of CompressedTrace that answer right and are shorter than the original."""
    finalizer = Finalizer(
        ctx.resources,
        ctx.resources.checkpoint(inputs.model),
        by_id(ctx, inputs.problems),
        inputs.finalizing,
        inputs.seed,
    )
    prefixes = [Prefix(thinking.trace.problem_id, thinking.token_ids) for thinking in compressed]
    endings = finalizer.sample_endings("compress", Purpose.COMPRESS, prefixes)
    rows, failed = list[CompressedTrace](), dict[str, FailedRequest]()
    for thinking, group in zip(compressed, endings, strict=True):
        if isinstance(group, FailedRequest):
            failed[thinking.trace.id] = group
            continue
        ending = shortest_right(group)
        if ending is None:
            dropped["no-right-ending"] += 1
        elif len(thinking.token_ids + ending) >= len(thinking.trace.token_ids):
            dropped["not-shorter"] += 1
        else:
            rows.append(_compressed_trace(thinking, ending))
    rows_in = len(rows) + dropped.total() + len(failed)
    return ctx.publish(
        "compressed",
        rows,
        rows_in=rows_in,
        dropped=dict(+dropped),
        usage=usage + finalizer.usage,
        billed_to=billed_to,
        skipped=skipped_rows(failed),
    )


def _compressed_trace(thinking: CompressedThinking, ending: TokenIds) -> CompressedTrace:
    return CompressedTrace(
        problem_id=thinking.trace.problem_id,
        sample=thinking.trace.sample,
        level=thinking.level,
        kept=thinking.kept,
        token_ids=thinking.token_ids + ending,
        original_tokens=len(thinking.trace.token_ids),
    )


@step()
def uncompressed(ctx: StepContext, traces: ArtifactRef, compressed: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: the originals of the compressed traces. A control."""
    names = {(row.problem_id, row.sample) for row in ctx.artifacts.rows(compressed, CompressedTrace)}
    rows = ctx.artifacts.rows(traces, Trace)
    kept = [row for row in rows if (row.problem_id, row.sample) in names]
    dropped = {"not-compressed": len(rows) - len(kept)} if len(kept) < len(rows) else {}
    return ctx.publish("traces", kept, rows_in=len(rows), dropped=dropped)


@step()
def pair_compressed(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    compressed: ArtifactRef,
    max_length: int,
) -> ArtifactRef:
    """Rows of Pair: the compressed trace is chosen, its original is rejected."""
    prompts, rows = prompts_of(ctx, model, problems), ctx.artifacts.rows(compressed, CompressedTrace)
    all_pairs = distillation_pairs(prompts, ctx.artifacts.rows(traces, Trace), rows)
    pairs, dropped = fit_pairs(all_pairs, max_length)
    return ctx.publish("pairs", pairs, rows_in=len(all_pairs), dropped=dict(dropped))
