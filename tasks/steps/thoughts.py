"""Long⊗Short's cold start: chunk traces into thoughts, estimate their values, build dialogues and SFT rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from conf.llm import Llm
from conf.long_short import Importance, LlmChunker, Protocol
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.inference.dialogue_sampler import TurnCodec
from reasoning import chunking, cold_start, thoughts
from reasoning.dialogue import Speaker, holds_tag, turns_of
from reasoning.llm_queries import InvalidReply, LlmQuery, with_token_limit
from reasoning.records import (
    ChunkedTrace,
    ColdStartDialogue,
    Demonstration,
    PrefixValues,
    Trace,
    left_joined,
    trace_name,
)
from reasoning.thinking import Thinking, reply_of, thinking_of, thought_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import PrefixSampler, continuation, skipped_rows
from tasks.steps.problems import by_id
from tasks.steps.trace_segments import TokenAligner, segment_aligner


@step()
def chunk_by_markers(
    ctx: StepContext, model: ArtifactRef, traces: ArtifactRef, segmentation: Segmentation
) -> ArtifactRef:
    """Rows of ChunkedTrace: each thought is one segment."""
    aligner, dropped = segment_aligner(ctx, ctx.resources.checkpoint(model), traces.rows, segmentation), Counter[str]()
    with RowFile() as chunked:
        chunked.extend(_chunked(_thinking(ctx, traces, dropped), aligner))
        return ctx.publish("thoughts", chunked, rows_in=traces.rows, dropped=dict(dropped), skipped=aligner.undecodable)


def _thinking(ctx: RunContext, traces: ArtifactRef, dropped: Counter[str]) -> Iterator[Trace]:
    """Traces that can be chunked. Counts the others in `dropped` by reason: no thinking, or a protocol tag in it."""
    tags = ctx.resources.prompt.thinking
    for trace in ctx.artifacts.stream(traces, Trace):
        thinking = thinking_of(thought_of(trace.text, tags), tags)
        if not thinking.strip():
            dropped["no-thinking"] += 1
        elif holds_tag(thinking):
            dropped["tag-in-thinking"] += 1
        else:
            yield trace


def _chunked(traces: Iterable[Trace], aligner: TokenAligner) -> Iterator[ChunkedTrace]:
    """Each trace with the ends of its thoughts, except those whose tokens cannot be aligned with text."""
    for trace in traces:
        if (ends := aligner.ends(trace)) is not None:
            yield ChunkedTrace(problem_id=trace.problem_id, sample=trace.sample, ends=tuple(ends))


@step("llm")
def chunk_by_llm(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, chunker: LlmChunker, llm: Llm
) -> ArtifactRef:
    """Rows of ChunkedTrace: steps of the thinking, grouped into thoughts by an auxiliary model.

    Raises TooManyInvalidReplies, TooManyFailed, and what the client of `llm` raises.
    """
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    dropped = Counter[str]()
    steps_of, queries = dict[str, list[str]](), list[LlmQuery[Any]]()
    for trace in _thinking(ctx, traces, dropped):
        steps_of[trace.id] = _steps(trace.text, ctx.resources.prompt.thinking)
        queries.append(chunking.chunking_query(known[trace.problem_id].text, steps_of[trace.id]))
    queries = with_token_limit(queries, chunker.max_tokens, "chunking.max_tokens")
    answers = query_llm(ctx, llm, "chunk", queries, chunker.max_invalid_fraction)
    thoughts_of = {
        name: chunking.join_thoughts(steps, reply)
        for (name, steps), reply in zip(steps_of.items(), answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    }
    aligner = TokenAligner(ctx, checkpoint, len(thoughts_of), lambda trace: thoughts_of[trace.id])
    grouped = (trace for trace in ctx.artifacts.stream(traces, Trace) if trace.id in thoughts_of)
    with RowFile() as chunked:
        chunked.extend(_chunked(grouped, aligner))
        return ctx.publish(
            "thoughts",
            chunked,
            rows_in=traces.rows,
            dropped=dict(answers.invalid + dropped),
            usage=answers.usage,
            billed_to=answers.billed_to,
            skipped=aligner.undecodable,
        )


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
    rows = left_joined(ctx.artifacts.stream(traces, Trace), ctx.artifacts.stream(chunked, ChunkedTrace), trace_name)
    prefixes = ((trace, (0, *row.ends)) for trace, row in rows if row)
    sampler = PrefixSampler(
        ctx.resources,
        ctx.resources.checkpoint(model),
        by_id(ctx, problems),
        continuation(rollouts, ctx.resources.prompt.thinking),
        seed,
    )
    with RowFile() as values, closing(sampler.estimate_values("value thoughts", chunked.rows, prefixes)) as done:
        values.extend(done)
        return ctx.publish(
            "values", values, rows_in=chunked.rows, usage=sampler.usage, skipped=skipped_rows(sampler.failed)
        )


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
    checkpoint, tags = ctx.resources.checkpoint(model), ctx.resources.prompt.thinking
    counts = Counter({"thoughts": 0, "important": 0, "turns": 0})
    rows = left_joined(ctx.artifacts.stream(traces, Trace), ctx.artifacts.stream(values, PrefixValues), trace_name)
    with RowFile() as dialogues:
        for trace, row in rows:
            dialogue = _as_dialogue(checkpoint, tags, trace, row, importance, max_rounds) if row else None
            if dialogue:
                dialogues.append(dialogue)
                counts["thoughts"] += len(dialogue.important)
                counts["important"] += sum(dialogue.important)
                counts["turns"] += len(turns_of(dialogue.transcript))
        dropped = {"too-many-rounds-or-tags": values.rows - len(dialogues)} if len(dialogues) < values.rows else {}
        return ctx.publish("cold-start-dialogues", dialogues, rows_in=values.rows, dropped=dropped, counts=dict(counts))


def _as_dialogue(
    model: Checkpoint, tags: Thinking, trace: Trace, values: PrefixValues, importance: Importance, max_rounds: int
) -> ColdStartDialogue | None:
    """None where the protocol allows no such dialogue."""
    texts = model.texts_between(trace.token_ids, values.ends)
    # Some prompts let the model write the tag that opens the thinking.
    texts[0] = thought_of(texts[0], tags)
    important = thoughts.are_long(thoughts.importance(values.values, values.lengths, importance))
    dialogue = cold_start.as_dialogue(texts, important, reply_of(trace.text, tags) or "", max_rounds)
    if dialogue is None:
        return None
    return ColdStartDialogue(
        problem_id=trace.problem_id, sample=trace.sample, important=tuple(important), transcript=str(dialogue)
    )


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
    dropped, turns = Counter[str](), 0
    with RowFile() as rows:
        for row in ctx.artifacts.stream(dialogues, ColdStartDialogue):
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
