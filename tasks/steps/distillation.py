"""CoT distillation's own steps: choose, value, rate, compress, pair (papers, section A).

Knows: which records each of `reasoning`'s rules wants. Must not know: the rules, or how an engine is asked.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain, product
from typing import NamedTuple

from conf.cot_distillation import EndpointTeacher, LengthBudget, LlmCompressor, LlmRater, TraceSelection
from conf.llm import Llm
from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Refused
from models.inference.rollout_store import Purpose
from reasoning import compression, difficulty
from reasoning.dto import shortest_right
from reasoning.llm_queries import InvalidReply, LlmQuery, Solution, with_token_limit
from reasoning.pairs import distillation_pairs, fit_pairs
from reasoning.records import CompressedTrace, PrefixValues, Rating, Trace, Usage, Verdict, by_trace
from reasoning.thinking import CLOSE_THINK, final_answer, thinking_of, thought_of, written_as
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import StepInputs, step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.dto import all_segment_ends
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import Finalizer, Prefix, PrefixSampler, TokenIds, answer_probe, skipped_rows
from tasks.steps.problems import by_id, prompts_of

SAMPLES_APART = 1_000_000
"""Between the numbers of two seeds' samples."""


@step
def import_traces(ctx: StepContext, model: ArtifactRef, traces: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: another model's traces in the token ids of `model`."""
    checkpoint, rows = ctx.resources.checkpoint(model), ctx.artifacts.rows(traces, Trace)
    end = (checkpoint.end_id,)
    adopted = [
        row.model_copy(update={"token_ids": checkpoint.encode(row.text) + end * (not row.truncated)}) for row in rows
    ]
    return ctx.publish("traces", adopted, rows_in=len(rows))


@step
def write_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    teacher: EndpointTeacher,
    sampling: Sampling,
    seed: int,
) -> ArtifactRef:
    """Rows of Trace in the token ids of `model`, written by an endpoint. Raises what its client does."""
    checkpoint, known = ctx.resources.checkpoint(model), list(by_id(ctx, problems).values())
    tags = checkpoint.prompt.thinking
    asks = [
        LlmQuery(
            teacher.instruction,
            problem.text,
            Solution,
            sampling.max_tokens,
            sampling.temperature,
            sampling.top_p,
            sample=seed * SAMPLES_APART + sample,
            limit="sampling.max_tokens",
        )
        for problem in known
        for sample in range(sampling.samples)
    ]
    found = query_llm(ctx, teacher.llm, "write traces", asks, teacher.max_invalid_fraction)
    told = zip(product(known, range(sampling.samples)), found.replies, strict=True)
    used = [(*asked, reply) for asked, reply in told if not isinstance(reply, InvalidReply)]
    plain = [
        (problem, sample, reply, written_as(reply.text, tags))
        for problem, sample, reply in used
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
    dropped = found.unusable + Counter({"control-token": len(used) - len(plain)})
    return ctx.publish(
        "traces",
        rows,
        rows_in=len(asks),
        dropped=dict(+dropped),
        usage=found.usage + checks,
        billed_to=found.billed_to,
    )


@step
def select_traces(ctx: StepContext, traces: ArtifactRef, selection: TraceSelection) -> ArtifactRef:
    """Rows of Trace: of each problem's right ones, as many as are wanted."""
    rows = ctx.artifacts.rows(traces, Trace)
    right: dict[str, list[Trace]] = defaultdict(list)
    for row in rows:
        if row.verdict is Verdict.RIGHT and not row.truncated:
            right[row.problem_id].append(row)
    sign = {"as-drawn": 0, "shortest": 1, "longest": -1}[selection.order]
    chosen = [
        row
        for group in right.values()
        for row in sorted(group, key=lambda row: sign * len(row.token_ids))[: selection.max_traces]
    ]
    of_right = sum(map(len, right.values()))
    dropped = Counter({"not-right": len(rows) - of_right, "not-chosen": of_right - len(chosen)})
    counts = {"problems": len({row.problem_id for row in rows}), "problems with a right trace": len(right)}
    return ctx.publish("traces", chosen, rows_in=len(rows), dropped=dict(+dropped), counts=counts)


@step
def estimate_prefix_values(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    segmentation: Segmentation,
    probing: Probing,
    seed: int,
) -> ArtifactRef:
    """Rows of Valued: the right ones among the rollouts of every prefix, and of no thinking at all."""
    checkpoint, rows = ctx.resources.checkpoint(model), ctx.artifacts.rows(traces, Trace)
    ends_of, undecodable = all_segment_ends(ctx, checkpoint, rows, segmentation)
    ends = {name: [0, *segments] for name, segments in ends_of.items()}
    sampler = PrefixSampler(ctx.resources, checkpoint, by_id(ctx, problems), answer_probe(probing), seed)
    valued = sampler.estimate_values("value prefixes", [row for row in rows if row.id in ends], ends)
    return ctx.publish(
        "values",
        valued,
        rows_in=len(rows),
        usage=sampler.usage,
        skipped=undecodable + skipped_rows(sampler.refused),
    )


@step
def rate_by_effort(ctx: StepContext, traces: ArtifactRef, values: ArtifactRef, threshold: float) -> ArtifactRef:
    """Rows of Rating: of each problem with a valued trace, from all its traces and what the valued ones need."""
    drawn, right = Counter[str](), Counter[str]()
    for row in ctx.artifacts.rows(traces, Trace):
        drawn[row.problem_id] += 1
        right[row.problem_id] += row.verdict is Verdict.RIGHT
    needed: dict[str, list[int]] = defaultdict(list)
    for row in ctx.artifacts.rows(values, PrefixValues):
        needed[row.problem_id].append(row.needed(threshold))
    efforts = {
        name: difficulty.effort(right[name], drawn[name], sum(lengths) / len(lengths))
        for name, lengths in needed.items()
    }
    ratings = [Rating(problem_id=name, level=level) for name, level in difficulty.levels(efforts).items()]
    return ctx.publish("ratings", ratings, rows_in=len(needed))


@step
def rate_by_llm(ctx: StepContext, problems: ArtifactRef, traces: ArtifactRef, rater: LlmRater, llm: Llm) -> ArtifactRef:
    """Rows of Rating: of each problem with a trace, by an auxiliary model. Raises what the model's client does, and
    TooManyUnusable."""
    known, names = by_id(ctx, problems), {row.problem_id: None for row in ctx.artifacts.rows(traces, Trace)}
    asks = with_token_limit(
        [difficulty.difficulty_query(known[name]) for name in names], rater.max_tokens, "rating.max_tokens"
    )
    found = query_llm(ctx, llm, "rate", asks, rater.max_invalid_fraction)
    ratings = [
        Rating(problem_id=name, level=reply.level)
        for name, reply in zip(names, found.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    return ctx.publish(
        "ratings",
        ratings,
        rows_in=len(names),
        dropped=found.unusable,
        usage=found.usage,
        billed_to=found.billed_to,
    )


@step
def permute_ratings(ctx: StepContext, ratings: ArtifactRef, seed: int) -> ArtifactRef:
    """Rows of Rating: the same levels, each at another problem. A control."""
    rows = ctx.artifacts.rows(ratings, Rating)
    levels = [row.level for row in rows]
    random.Random(f"exchange/{seed}").shuffle(levels)
    exchanged = [Rating(problem_id=row.problem_id, level=level) for row, level in zip(rows, levels, strict=True)]
    return ctx.publish("ratings", exchanged, rows_in=len(rows))


class Thought(NamedTuple):
    """Compressed thinking that is still to be brought to its end."""

    trace: Trace
    level: int
    token_ids: TokenIds
    kept: tuple[int, ...] = ()


class CompressionInputs(StepInputs):
    """Rated traces, the budget of each level, and how compressed thinking is finished."""

    model: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    ratings: ArtifactRef
    budget: LengthBudget
    finalizing: Finalizing
    seed: int


@step
def compress_by_value(
    ctx: StepContext,
    inputs: CompressionInputs,
    values: ArtifactRef,
) -> ArtifactRef:
    """Rows of Compressed: the segments that contribute most, as many as the problem's level allows."""
    due, dropped = _compression_jobs(ctx, inputs)
    valued = by_trace(ctx.artifacts.rows(values, PrefixValues))
    thoughts = []
    for trace, level, tokens in due:
        row = valued.get((trace.problem_id, trace.sample))
        if row is None:
            dropped["unvalued"] += 1
            continue
        kept = compression.kept_segments(row.values, row.lengths, tokens)
        parts = (trace.token_ids[row.ends[index] : row.ends[index + 1]] for index in kept)
        thoughts.append(Thought(trace, level, tuple(chain.from_iterable(parts)), kept))
    fitting = [thought for thought in thoughts if thought.kept]
    dropped["over-budget"] += len(thoughts) - len(fitting)
    return _finished(ctx, inputs, fitting, dropped, Usage())


@step
def compress_by_llm(
    ctx: StepContext,
    inputs: CompressionInputs,
    compressor: LlmCompressor,
    llm: Llm,
) -> ArtifactRef:
    """Rows of Compressed: thinking as an auxiliary model writes it anew. Raises what its client does."""
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    due, dropped = _compression_jobs(ctx, inputs)
    asks = [
        compression.compression_query(
            known[trace.problem_id], thinking_of(trace.text, checkpoint.prompt.thinking), max(1, round(tokens))
        )
        for trace, _, tokens in due
    ]
    asks = with_token_limit(asks, compressor.max_tokens, "compression.by.max_tokens")
    found = query_llm(ctx, llm, "compress", asks, compressor.max_invalid_fraction)
    dropped += found.unusable
    line_break = "" if inputs.finalizing.closing_text.startswith("\n") else "\n"
    thoughts = []
    for (trace, level, tokens), reply in zip(due, found.replies, strict=True):
        if isinstance(reply, InvalidReply):
            continue
        thought = Thought(trace, level, checkpoint.encode(reply.thinking.strip() + line_break))
        refusal = _invalid_reason(checkpoint, reply.thinking, len(thought.token_ids), compressor.slack * tokens)
        if refusal:
            dropped[refusal] += 1
        else:
            thoughts.append(thought)
    return _finished(ctx, inputs, thoughts, dropped, found.usage, found.billed_to)


def _invalid_reason(checkpoint: Checkpoint, text: str, tokens: int, most: float) -> str:
    """Why rewritten thinking is no thinking within its budget; empty when it is."""
    if not text.strip():
        return "empty"
    if checkpoint.holds_control(text):
        return "control-token"
    return "over-budget" if tokens > most else ""


class CompressionJob(NamedTuple):
    """A trace that is to get shorter."""

    trace: Trace
    level: int
    tokens: float
    """That its thinking may keep."""


def _compression_jobs(ctx: RunContext, inputs: CompressionInputs) -> tuple[list[CompressionJob], Counter[str]]:
    """Traces longer than their level allows, and what was left out by reason."""
    checkpoint, rows = ctx.resources.checkpoint(inputs.model), ctx.artifacts.rows(inputs.traces, Trace)
    level_of = {row.problem_id: row.level for row in ctx.artifacts.rows(inputs.ratings, Rating)}
    rated = [(row, level_of[row.problem_id]) for row in rows if row.problem_id in level_of]
    due = []
    for trace, level in rated:
        thinking = len(checkpoint.encode(thinking_of(trace.text, checkpoint.prompt.thinking)))
        tokens = inputs.budget.tokens(level, thinking)
        if tokens < thinking:
            due.append(CompressionJob(trace, level, tokens))
    return due, Counter({"unrated": len(rows) - len(rated), "within-budget": len(rated) - len(due)})


def _finished(
    ctx: StepContext,
    inputs: CompressionInputs,
    thoughts: Sequence[Thought],
    dropped: Counter[str],
    usage: Usage,
    billed_to: str = "",
) -> ArtifactRef:
    """The gate: what still answers right, and is shorter than it was."""
    finalizer = Finalizer(
        ctx.resources,
        ctx.resources.checkpoint(inputs.model),
        by_id(ctx, inputs.problems),
        inputs.finalizing,
        inputs.seed,
    )
    prefixes = [Prefix(thought.trace.problem_id, thought.token_ids) for thought in thoughts]
    rows, refused = list[CompressedTrace](), dict[str, Refused]()
    for thought, endings in zip(
        thoughts, finalizer.sample_endings("compress", Purpose.COMPRESS, prefixes), strict=True
    ):
        trace = thought.trace
        if isinstance(endings, Refused):
            refused[trace.id] = endings
            continue
        ending = shortest_right(endings)
        if ending is None:
            dropped["no-right-ending"] += 1
        elif len(thought.token_ids + ending) >= len(trace.token_ids):
            dropped["not-shorter"] += 1
        else:
            rows.append(
                CompressedTrace(
                    problem_id=trace.problem_id,
                    sample=trace.sample,
                    level=thought.level,
                    kept=thought.kept,
                    token_ids=thought.token_ids + ending,
                    original_tokens=len(trace.token_ids),
                )
            )
    rows_in = len(rows) + dropped.total() + len(refused)
    return ctx.publish(
        "compressed",
        rows,
        rows_in=rows_in,
        dropped=dict(+dropped),
        usage=usage + finalizer.usage,
        billed_to=billed_to,
        skipped=skipped_rows(refused),
    )


@step
def uncompressed(ctx: StepContext, traces: ArtifactRef, compressed: ArtifactRef) -> ArtifactRef:
    """Rows of Trace: those that were compressed, as they were. A control."""
    names = {(row.problem_id, row.sample) for row in ctx.artifacts.rows(compressed, CompressedTrace)}
    rows = ctx.artifacts.rows(traces, Trace)
    kept = [row for row in rows if (row.problem_id, row.sample) in names]
    dropped = {"not-compressed": len(rows) - len(kept)} if len(kept) < len(rows) else {}
    return ctx.publish("traces", kept, rows_in=len(rows), dropped=dropped)


@step
def pair_compressed(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    compressed: ArtifactRef,
    max_length: int,
) -> ArtifactRef:
    """Rows of Pair: the compressed trace against itself as it was."""
    prompts, rows = prompts_of(ctx, model, problems), ctx.artifacts.rows(compressed, CompressedTrace)
    made = distillation_pairs(prompts, ctx.artifacts.rows(traces, Trace), rows)
    pairs, dropped = fit_pairs(made, max_length)
    return ctx.publish("pairs", pairs, rows_in=len(made), dropped=dict(dropped))
