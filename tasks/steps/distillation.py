"""CoT distillation's own steps: select, value, rate, compress, pair (arXiv 2509.05226).

The rules themselves are in `reasoning`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, product
from typing import Any, NamedTuple, TypeVar

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
from reasoning.pairs import distillation_pair, fit_pairs
from reasoning.records import (
    CompressedTrace,
    PrefixValues,
    Problem,
    Rating,
    Trace,
    Usage,
    Verdict,
    left_joined,
    trace_name,
)
from reasoning.thinking import CLOSE_THINK, final_answer, thinking_of, thought_of, written_as
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.runtime.step_inputs import StepInputs
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import Finalizer, Prefix, PrefixSampler, answer_probe, skipped_rows
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.trace_segments import segment_aligner

T = TypeVar("T")
SAMPLE_STRIDE = 1_000_000
"""Distance between the sample numbers of two seeds, so that seeds share no endpoint replies."""


@step()
def import_traces(ctx: StepContext, model: ArtifactRef, traces: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: another model's traces, encoded in the token ids of `model`."""
    checkpoint = ctx.resources.checkpoint(model)
    end = (checkpoint.end_id,)
    with RowFile() as encoded:
        for row in ctx.artifacts.stream(traces, Trace):
            token_ids = checkpoint.encode(row.text) + end * (not row.truncated)
            encoded.append(row.model_copy(update={"token_ids": token_ids}))
        return ctx.publish("traces", encoded, rows_in=traces.rows)


def _trace_query(teacher: EndpointTeacher, problem: Problem, sampling: Sampling, sample: int) -> LlmQuery[Solution]:
    return LlmQuery(
        teacher.instruction,
        problem.text,
        Solution,
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sample=sample,
        images=problem.images,
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
    sign = {"as-drawn": 0, "shortest": 1, "longest": -1}[selection.order]
    right: dict[str, list[tuple[int, int]]] = defaultdict(list)
    """By problem: the rank of each right trace, and its place among all."""
    problems = set[str]()
    for place, row in enumerate(ctx.artifacts.stream(traces, Trace)):
        problems.add(row.problem_id)
        if row.verdict is Verdict.RIGHT and not row.truncated:
            right[row.problem_id].append((sign * len(row.token_ids), place))
    # Those of a problem together, in the order of their first: a data set may hold them far apart.
    groups = sorted(sorted(place for _, place in sorted(group)[: selection.max_traces]) for group in right.values())
    kept = list(chain.from_iterable(groups))
    total_right, place_of = sum(map(len, right.values())), {place: new for new, place in enumerate(kept)}
    dropped = Counter({"not-right": traces.rows - total_right, "not-selected": total_right - len(kept)})
    counts = {"problems": len(problems), "problems with a right trace": len(right)}
    with RowFile() as found, RowFile() as grouped:
        rows = enumerate(ctx.artifacts.stream(traces, Trace))
        found.extend(row for place, row in rows if place in place_of)
        selected = found
        if kept != sorted(kept):
            grouped.extend(found.reordered([place_of[place] for place in sorted(kept)], Trace))
            selected = grouped
        return ctx.publish("traces", selected, rows_in=traces.rows, dropped=dict(+dropped), counts=counts)


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
    checkpoint = ctx.resources.checkpoint(model)
    aligner = segment_aligner(ctx, checkpoint, traces.rows, segmentation)
    sampler = PrefixSampler(ctx.resources, checkpoint, by_id(ctx, problems), answer_probe(probing), seed)
    rows = (
        (trace, [0, *ends])
        for trace in ctx.artifacts.stream(traces, Trace)
        if (ends := aligner.ends(trace)) is not None
    )
    with (
        RowFile() as values,
        closing(sampler.estimate_values("estimate prefix values", traces.rows, rows)) as done,
    ):
        values.extend(done)
        return ctx.publish(
            "values",
            values,
            rows_in=traces.rows,
            usage=sampler.usage,
            skipped=aligner.undecodable + skipped_rows(sampler.failed),
        )


@step()
def rate_by_effort(ctx: StepContext, traces: ArtifactRef, values: ArtifactRef, threshold: float) -> ArtifactRef:
    """Rows of Rating, one for each problem with estimated values.

    The effort of a problem follows from its share of right traces, and from the tokens that its traces need until a
    prefix is right more often than `threshold`.
    """
    sampled, right = Counter[str](), Counter[str]()
    for problem, verdict in ctx.artifacts.columns(traces, "problem_id", "verdict"):
        sampled[problem] += 1
        right[problem] += verdict == Verdict.RIGHT
    needed: dict[str, list[int]] = defaultdict(list)
    for row in ctx.artifacts.stream(values, PrefixValues):
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
    known, names = by_id(ctx, problems), {name: None for (name,) in ctx.artifacts.columns(traces, "problem_id")}
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
    dropped = Counter[str]()
    rows = left_joined(
        ctx.artifacts.stream(inputs.traces, Trace), ctx.artifacts.stream(values, PrefixValues), trace_name
    )
    with RowFile() as compressed:
        for job, row in _compression_jobs(ctx, inputs, rows, dropped):
            if row is None:
                dropped["no-values"] += 1
            elif kept := compression.kept_segments(row.values, row.lengths, job.max_tokens):
                parts = (job.trace.token_ids[row.ends[index] : row.ends[index + 1]] for index in kept)
                compressed.append(_compressed(job, TokenIds.join(parts), kept))
            else:
                dropped["over-budget"] += 1
        return _finalize_and_filter(ctx, inputs, compressed, dropped, Usage())


@step("llm")
def compress_by_llm(ctx: StepContext, inputs: CompressionInputs, compressor: LlmCompressor, llm: Llm) -> ArtifactRef:
    """Rows of CompressedTrace: thinking rewritten by an auxiliary model.

    Raises TooManyInvalidReplies, TooManyFailed, and what the client of `llm` raises.
    """
    checkpoint, known, dropped = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems), Counter[str]()
    queries, targets = list[LlmQuery[Any]](), list[tuple[CompressedTrace, float]]()
    traces = ((trace, None) for trace in ctx.artifacts.stream(inputs.traces, Trace))
    for job, _ in _compression_jobs(ctx, inputs, traces, dropped):
        thinking = thinking_of(job.trace.text, checkpoint.prompt.thinking)
        problem, max_tokens = known[job.trace.problem_id], max(1, round(job.max_tokens))
        queries.append(compression.compression_query(problem, thinking, max_tokens))
        targets.append((_compressed(job, TokenIds(), ()), compressor.slack * job.max_tokens))
    queries = with_token_limit(queries, compressor.max_tokens, "compression.by.max_tokens")
    answers = query_llm(ctx, llm, "compress", queries, compressor.max_invalid_fraction)
    dropped += answers.invalid
    line_break = "" if inputs.finalizing.closing_text.startswith("\n") else "\n"
    with RowFile() as compressed:
        for (target, max_tokens), reply in zip(targets, answers.replies, strict=True):
            if isinstance(reply, InvalidReply):
                continue
            token_ids = checkpoint.encode(reply.thinking.strip() + line_break)
            if reason := _invalid_reason(checkpoint, reply.thinking, len(token_ids), max_tokens):
                dropped[reason] += 1
            else:
                compressed.append(target.model_copy(update={"token_ids": token_ids}))
        return _finalize_and_filter(ctx, inputs, compressed, dropped, answers.usage, answers.billed_to)


def _compressed(job: CompressionJob, token_ids: TokenIds, kept: tuple[int, ...]) -> CompressedTrace:
    """A trace compressed to this thinking, without an ending."""
    return CompressedTrace(
        problem_id=job.trace.problem_id,
        sample=job.trace.sample,
        level=job.level,
        kept=kept,
        token_ids=token_ids,
        original_tokens=len(job.trace.token_ids),
    )


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


def _compression_jobs(
    ctx: RunContext, inputs: CompressionInputs, traces: Iterable[tuple[Trace, T]], dropped: Counter[str]
) -> Iterator[tuple[CompressionJob, T]]:
    """Traces longer than their level's budget, each with what came with it. Counts the others, by reason, in
    `dropped`."""
    checkpoint = ctx.resources.checkpoint(inputs.model)
    level_of = {row.problem_id: row.level for row in ctx.artifacts.rows(inputs.ratings, Rating)}
    for trace, item in traces:
        level = level_of.get(trace.problem_id)
        if level is None:
            dropped["unrated"] += 1
            continue
        tokens = len(checkpoint.encode(thinking_of(trace.text, checkpoint.prompt.thinking)))
        max_tokens = inputs.budget.tokens(level, tokens)
        if max_tokens < tokens:
            yield CompressionJob(trace, level, max_tokens), item
        else:
            dropped["within-budget"] += 1


def _finalize_and_filter(
    ctx: StepContext,
    inputs: CompressionInputs,
    compressed: RowFile,
    dropped: Counter[str],
    usage: Usage,
    billed_to: str = "",
) -> ArtifactRef:
    """Samples endings and publishes rows of CompressedTrace that answer right and are shorter than the original.
    `compressed`: such rows without an ending."""
    finalizer = Finalizer(
        ctx.resources,
        ctx.resources.checkpoint(inputs.model),
        by_id(ctx, inputs.problems),
        inputs.finalizing,
        inputs.seed,
    )
    failed, total = dict[str, FailedRequest](), len(compressed)
    prefixes = ((row, Prefix(row.problem_id, row.token_ids)) for row in compressed.read(CompressedTrace))
    with RowFile() as rows, closing(finalizer.run("compress", Purpose.COMPRESS, total, prefixes)) as done:
        for row, group in done:
            if isinstance(group, FailedRequest):
                failed[f"{row.problem_id}/{row.sample}"] = group
            elif (ending := shortest_right(group)) is None:
                dropped["no-right-ending"] += 1
            elif len(row.token_ids + ending) >= row.original_tokens:
                dropped["not-shorter"] += 1
            else:
                rows.append(row.model_copy(update={"token_ids": row.token_ids + ending}))
        return ctx.publish(
            "compressed",
            rows,
            rows_in=len(rows) + dropped.total() + len(failed),
            dropped=dict(+dropped),
            usage=usage + finalizer.usage,
            billed_to=billed_to,
            skipped=skipped_rows(failed),
        )


@step()
def uncompressed(ctx: StepContext, traces: ArtifactRef, compressed: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: the originals of the compressed traces. A control."""
    with RowFile() as kept:
        kept.extend(trace for trace, _ in compressed_traces(ctx, traces, compressed))
        dropped = {"not-compressed": traces.rows - len(kept)} if len(kept) < traces.rows else {}
        return ctx.publish("traces", kept, rows_in=traces.rows, dropped=dropped)


def compressed_traces(
    ctx: RunContext, traces: ArtifactRef, compressed: ArtifactRef
) -> Iterator[tuple[Trace, CompressedTrace]]:
    """The traces that were compressed, each with what it has become."""
    rows = left_joined(
        ctx.artifacts.stream(traces, Trace), ctx.artifacts.stream(compressed, CompressedTrace), trace_name
    )
    return ((trace, row) for trace, row in rows if row)


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
    prompts, dropped = prompts_of(ctx, model, problems), Counter[str]()
    with RowFile() as pairs:
        for trace, row in compressed_traces(ctx, traces, compressed):
            fitting, unfit = fit_pairs([distillation_pair(prompts[trace.problem_id], trace, row)], max_length)
            pairs.extend(fitting)
            dropped += unfit
        return ctx.publish("pairs", pairs, rows_in=compressed.rows, dropped=dict(dropped))
