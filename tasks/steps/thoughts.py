"""Long⊗Short's cold start: chunk traces into thoughts, estimate their values, build dialogues and SFT rows."""

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
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import PrefixSampler, continuation, skipped_rows
from tasks.steps.problems import by_id
from tasks.steps.trace_segments import all_segment_ends, texts_between, token_ends_of


@step()
def chunk_by_markers(
    ctx: StepContext, model: ArtifactRef, traces: ArtifactRef, segmentation: Segmentation
) -> ArtifactRef:
    """Rows of ChunkedTrace: each thought is one segment."""
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
    """Traces that can be chunked, and counts of the others by reason: no thinking, or a protocol tag in it."""
    rows = ctx.artifacts.rows(traces, Trace)
    tags = ctx.resources.prompt.thinking
    thoughts_of = [thinking_of(thought_of(row.text, tags), tags) for row in rows]
    thinking = [(row, text) for row, text in zip(rows, thoughts_of, strict=True) if text.strip()]
    usable = [row for row, text in thinking if not holds_tag(text)]
    dropped = {"no-thinking": len(rows) - len(thinking), "tag-in-thinking": len(thinking) - len(usable)}
    return usable, Counter(dropped)


@step("llm")
def chunk_by_llm(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, chunker: LlmChunker, llm: Llm
) -> ArtifactRef:
    """Rows of ChunkedTrace: steps of the thinking, grouped into thoughts by an auxiliary model.

    Raises TooManyInvalidReplies, TooManyFailed, and what the client of `llm` raises.
    """
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    rows, dropped = _thinking(ctx, traces)
    steps_of = [_steps(row.text, ctx.resources.prompt.thinking) for row in rows]
    queries = [chunking.chunking_query(known[row.problem_id].text, s) for row, s in zip(rows, steps_of, strict=True)]
    queries = with_token_limit(queries, chunker.max_tokens, "chunking.max_tokens")
    answers = query_llm(ctx, llm, "chunk", queries, chunker.max_invalid_fraction)
    thoughts_of = {
        row.id: chunking.join_thoughts(steps, reply)
        for row, steps, reply in zip(rows, steps_of, answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    }
    grouped = [row for row in rows if row.id in thoughts_of]
    ends, undecodable = token_ends_of(ctx, checkpoint, grouped, lambda row: thoughts_of[row.id])
    return ctx.publish(
        "thoughts",
        _chunked(grouped, ends),
        rows_in=len(rows) + dropped.total(),
        dropped=dict(+(answers.invalid + dropped)),
        usage=answers.usage,
        billed_to=answers.billed_to,
        skipped=undecodable,
    )


def _chunked(rows: Sequence[Trace], ends: Mapping[str, Sequence[int]]) -> list[ChunkedTrace]:
    """One ChunkedTrace for each row that has `ends`."""
    return [
        ChunkedTrace(problem_id=row.problem_id, sample=row.sample, ends=tuple(ends[row.id]))
        for row in rows
        if row.id in ends
    ]


def _steps(text: str, thinking: Thinking) -> list[str]:
    """The steps of a trace's thinking. A tag that opens the thinking belongs to the first step."""
    first, *rest = chunking.steps(thinking_of(text, thinking))
    return [first, *rest] if thought_of(first, thinking).strip() or not rest else [first + rest[0], *rest[1:]]


@step("sampling")
def value_thoughts(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    chunked: ArtifactRef,
    rollouts: Sampling,
    seed: int,
) -> ArtifactRef:
    """Rows of PrefixValues: right rollouts that continue after each thought, and after none.

    Raises TooManyFailed.
    """
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
    values = sampler.estimate_values("value thoughts", rows, ends)
    return ctx.publish("values", values, rows_in=len(rows), usage=sampler.usage, skipped=skipped_rows(sampler.failed))


@step()
def build_cold_start_dialogues(
    ctx: StepContext,
    model: ArtifactRef,
    traces: ArtifactRef,
    values: ArtifactRef,
    importance: Importance,
    max_rounds: int,
) -> ArtifactRef:
    """Rows of ColdStartDialogue: important thoughts are Long's turns, the other thoughts, condensed, are Short's."""
    checkpoint, trace_of = ctx.resources.checkpoint(model), by_trace(ctx.artifacts.rows(traces, Trace))
    rows, tags = ctx.artifacts.rows(values, PrefixValues), ctx.resources.prompt.thinking
    dialogues = []
    for row in rows:
        trace = trace_of[row.problem_id, row.sample]
        texts = texts_between(checkpoint, trace, row.ends)
        # Some prompts let the model write the tag that opens the thinking.
        texts[0] = thought_of(texts[0], tags)
        important = thoughts.are_long(thoughts.importance(row.values, row.lengths, importance))
        dialogue = cold_start.as_dialogue(texts, important, reply_of(trace.text, tags) or "", max_rounds)
        if dialogue is not None:
            dialogues.append(
                ColdStartDialogue(
                    problem_id=row.problem_id, sample=row.sample, important=tuple(important), transcript=str(dialogue)
                )
            )
    dropped = {"too-many-rounds-or-tags": len(rows) - len(dialogues)} if len(dialogues) < len(rows) else {}
    counts = {
        "thoughts": sum(len(row.important) for row in dialogues),
        "important": sum(sum(row.important) for row in dialogues),
        "turns": sum(len(turns_of(row.transcript)) for row in dialogues),
    }
    return ctx.publish("cold-start-dialogues", dialogues, rows_in=len(rows), dropped=dropped, counts=counts)


@step()
def build_turn_sft_rows(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    dialogues: ArtifactRef,
    protocol: Protocol,
    speaker: Speaker,
    max_length: int,
) -> ArtifactRef:
    """Rows of Demonstration: each turn of one speaker, with what it read before as the prompt.

    Drops turns that are longer than the protocol allows, or than `max_length` tokens with their prompt.
    """
    codec, known = TurnCodec(ctx.resources.checkpoint(model), protocol), by_id(ctx, problems)
    rows, dropped, turns = [], Counter[str](), 0
    for row in ctx.artifacts.rows(dialogues, ColdStartDialogue):
        context = codec.prompts(known[row.problem_id])[speaker]
        for turn in turns_of(row.transcript):
            opening, rest = codec.encode_turn(turn)
            context += opening
            if turn.speaker is speaker:
                turns += 1
                if len(rest) > protocol.max_turn_tokens or len(context) + len(rest) > max_length:
                    dropped["too-long"] += 1
                else:
                    rows.append(
                        Demonstration(
                            problem_id=row.problem_id, sample=row.sample, prompt_ids=context, completion_ids=rest
                        )
                    )
            context += rest
    return ctx.publish("demonstrations", rows, rows_in=turns, dropped=dict(dropped))
