"""From traces to the turns of two models: chunk, value, rehearse (papers, section C.1–C.3).

Knows: which records each of `reasoning`'s rules wants. Must not know: the rules, or how an engine is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from conf.llm import Llm
from conf.long_short import Importance, LlmChunker, Protocol
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.inference.dialogue_sampler import TurnCodec
from reasoning import chunking, cold_start, thoughts
from reasoning.dialogue import Speaker, holds_tag, turns_of
from reasoning.llm_queries import InvalidReply, with_token_limit
from reasoning.records import ChunkedTrace, ColdStartDialogue, Demonstration, PrefixValues, Trace, by_trace
from reasoning.thinking import Thinking, reply_of, thinking_of, thought_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.dto import all_ends, all_segment_ends, parts_of
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import PrefixSampler, continuation, skipped_rows
from tasks.steps.problems import by_id


@step
def chunk_by_markers(
    ctx: StepContext, model: ArtifactRef, traces: ArtifactRef, segmentation: Segmentation
) -> ArtifactRef:
    """Rows of Chunked: thoughts begin where segments do."""
    rows, dropped = _thinking(ctx, traces)
    ends, undecodable = all_segment_ends(ctx, ctx.resources.checkpoint(model), rows, segmentation)
    return ctx.publish(
        "thoughts",
        _chunked(rows, ends),
        rows_in=len(rows) + dropped.total(),
        dropped=dict(+dropped),
        skipped=undecodable,
    )


def _thinking(ctx: RunContext, traces: ArtifactRef) -> tuple[list[Trace], Counter[str]]:
    """Traces that can be taken apart, and what was left out by reason: no thinking, or a tag within it."""
    rows = ctx.artifacts.rows(traces, Trace)
    tags = ctx.resources.prompt.thinking
    thoughts_of = [thinking_of(thought_of(row.text, tags), tags) for row in rows]
    told = list(zip(rows, thoughts_of, strict=True))
    some = [(row, text) for row, text in told if text.strip()]
    plain = [row for row, text in some if not holds_tag(text)]
    return plain, Counter({"no-thinking": len(told) - len(some), "tag-in-thinking": len(some) - len(plain)})


@step
def chunk_by_llm(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, chunker: LlmChunker, llm: Llm
) -> ArtifactRef:
    """Rows of Chunked: steps of the thinking, grouped by an auxiliary model. Raises what its client does, and
    TooManyUnusable."""
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    rows, dropped = _thinking(ctx, traces)
    steps_of = [_steps(row.text, ctx.resources.prompt.thinking) for row in rows]
    asks = [chunking.chunking_query(known[row.problem_id].text, s) for row, s in zip(rows, steps_of, strict=True)]
    asks = with_token_limit(asks, chunker.max_tokens, "chunking.max_tokens")
    found = query_llm(ctx, llm, "chunk", asks, chunker.max_invalid_fraction)
    told = zip(rows, steps_of, found.replies, strict=True)
    joined = {
        row.id: chunking.join_thoughts(steps, one) for row, steps, one in told if not isinstance(one, InvalidReply)
    }
    grouped = [row for row in rows if row.id in joined]
    ends, undecodable = all_ends(ctx, checkpoint, grouped, lambda row: joined[row.id])
    return ctx.publish(
        "thoughts",
        _chunked(grouped, ends),
        rows_in=len(rows) + dropped.total(),
        dropped=dict(+(found.unusable + dropped)),
        usage=found.usage,
        billed_to=found.billed_to,
        skipped=undecodable,
    )


def _chunked(rows: Sequence[Trace], ends: Mapping[str, Sequence[int]]) -> list[ChunkedTrace]:
    """Of the rows that have `ends`."""
    return [
        ChunkedTrace(problem_id=row.problem_id, sample=row.sample, ends=tuple(ends[row.id]))
        for row in rows
        if row.id in ends
    ]


def _steps(text: str, thinking: Thinking) -> list[str]:
    """Of a trace's thinking; what opens it is part of the first."""
    first, *rest = chunking.steps(thinking_of(text, thinking))
    return [first, *rest] if thought_of(first, thinking).strip() or not rest else [first + rest[0], *rest[1:]]


@step
def value_thoughts(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    chunked: ArtifactRef,
    rollouts: Sampling,
    seed: int,
) -> ArtifactRef:
    """Rows of Valued: the right ones among the rollouts that go on after each thought, and after none."""
    thoughts_of = by_trace(ctx.artifacts.rows(chunked, ChunkedTrace))
    rows = [row for row in ctx.artifacts.rows(traces, Trace) if (row.problem_id, row.sample) in thoughts_of]
    ends = {row.id: (0, *thoughts_of[row.problem_id, row.sample].ends) for row in rows}
    sampler = PrefixSampler(
        ctx.resources,
        ctx.resources.checkpoint(model),
        by_id(ctx, problems),
        continuation(rollouts, ctx.resources.prompt.thinking),
        seed,
    )
    valued = sampler.estimate_values("value thoughts", rows, ends)
    return ctx.publish("values", valued, rows_in=len(rows), usage=sampler.usage, skipped=skipped_rows(sampler.refused))


@step
def build_cold_start_dialogues(
    ctx: StepContext,
    model: ArtifactRef,
    traces: ArtifactRef,
    values: ArtifactRef,
    importance: Importance,
    max_rounds: int,
) -> ArtifactRef:
    """Rows of Rehearsed: important thoughts as the turns of one model, condensed others as those of the other."""
    checkpoint, trace_of = ctx.resources.checkpoint(model), by_trace(ctx.artifacts.rows(traces, Trace))
    rows, rehearsed = ctx.artifacts.rows(values, PrefixValues), []
    for row in rows:
        trace = trace_of[row.problem_id, row.sample]
        texts = parts_of(checkpoint, trace, row.ends)
        texts[0] = thought_of(
            texts[0], ctx.resources.prompt.thinking
        )  # where the prompt leaves the opening to the model
        important = thoughts.are_long(thoughts.importance(row.values, row.lengths, importance))
        reply = reply_of(trace.text, ctx.resources.prompt.thinking) or ""
        dialogue = cold_start.as_dialogue(texts, important, reply, max_rounds)
        if dialogue is not None:
            rehearsed.append(
                ColdStartDialogue(
                    problem_id=row.problem_id, sample=row.sample, important=tuple(important), transcript=str(dialogue)
                )
            )
    dropped = {"too-many-rounds-or-tags": len(rows) - len(rehearsed)} if len(rehearsed) < len(rows) else {}
    counts = {
        "thoughts": sum(len(row.important) for row in rehearsed),
        "important": sum(sum(row.important) for row in rehearsed),
        "turns": sum(len(turns_of(row.transcript)) for row in rehearsed),
    }
    return ctx.publish("rehearsals", rehearsed, rows_in=len(rows), dropped=dropped, counts=counts)


@step
def build_turn_sft_rows(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    rehearsals: ArtifactRef,
    protocol: Protocol,
    speaker: Speaker,
    max_length: int,
) -> ArtifactRef:
    """Rows of Demonstration: each turn of one speaker, after what it was shown. Turns longer than the protocol allows
    are set aside."""
    codec, known = TurnCodec(ctx.resources.checkpoint(model), protocol), by_id(ctx, problems)
    learnt, dropped, turns = [], Counter[str](), 0
    for row in ctx.artifacts.rows(rehearsals, ColdStartDialogue):
        shown = codec.prompts(known[row.problem_id])[speaker]
        for turn in turns_of(row.transcript):
            opening, rest = codec.encode_turn(turn)
            shown += opening
            if turn.speaker is speaker:
                turns += 1
                if len(rest) > protocol.max_turn_tokens or len(shown) + len(rest) > max_length:
                    dropped["too-long"] += 1
                else:
                    learnt.append(
                        Demonstration(
                            problem_id=row.problem_id, sample=row.sample, prompt_ids=shown, completion_ids=rest
                        )
                    )
            shown += rest
    return ctx.publish("demonstrations", learnt, rows_in=turns, dropped=dict(dropped))
