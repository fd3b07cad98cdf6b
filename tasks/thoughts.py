"""From traces to the turns of two models: chunk, value, rehearse (papers, section C.1–C.3).

Knows: which records each of `reasoning`'s rules wants. Must not know: the rules, or how an engine is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

from conf.auxiliary import Llm
from conf.long_short import Importance, LlmChunker, Protocol
from conf.settings import Sampling, Segmentation
from models.dialogues import Tongue
from reasoning import chunking, cold_start, thoughts
from reasoning.asking import Unusable
from reasoning.dialogue import METHOD_VERSION as DIALOGUE_VERSION
from reasoning.dialogue import Speaker, holds_tag, turns_of
from reasoning.records import Chunked, Demonstration, Rehearsed, Trace, Valued, by_trace
from reasoning.rollouts import METHOD_VERSION as ROLLOUTS_VERSION
from reasoning.segment import METHOD_VERSION as SEGMENT_VERSION
from reasoning.segment import token_ends
from reasoning.thinking import Thinking, reply_of, thinking_of, thought_of
from reasoning.verifier import METHOD_VERSION as VERIFIER_VERSION
from tasks.artifacts import ArtifactRef
from tasks.auxiliary import asked_of
from tasks.caching import step
from tasks.dto import segment_ends
from tasks.problems import by_id
from tasks.rollouts import Prober, going_on
from tasks.workplace import Workplace

REHEARSE_VERSION = f"2.{thoughts.METHOD_VERSION}.{cold_start.METHOD_VERSION}.{DIALOGUE_VERSION}"


@step(version=f"2.{SEGMENT_VERSION}")
def chunk_by_markers(
    place: Workplace, model: ArtifactRef, traces: ArtifactRef, segmentation: Segmentation
) -> ArtifactRef:
    """Rows of Chunked: thoughts begin where segments do."""
    started = time.monotonic()
    checkpoint, (rows, dropped) = place.checkpoint(model), _thinking(place, traces)
    chunked = [
        Chunked(problem_id=r.problem_id, sample=r.sample, ends=tuple(segment_ends(checkpoint, r, segmentation)))
        for r in rows
    ]
    return place.publish(
        "thoughts", chunked, rows_in=len(rows) + dropped.total(), dropped=dict(+dropped), started=started
    )


def _thinking(place: Workplace, traces: ArtifactRef) -> tuple[list[Trace], Counter[str]]:
    """Traces that can be taken apart, and what was left out by reason: no thinking, or a tag within it."""
    rows = place.rows(traces, Trace)
    tags = place.prompt.thinking
    thoughts_of = [thinking_of(thought_of(row.text, tags), tags) for row in rows]
    told = list(zip(rows, thoughts_of, strict=True))
    some = [(row, text) for row, text in told if text.strip()]
    plain = [row for row, text in some if not holds_tag(text)]
    return plain, Counter({"no-thinking": len(told) - len(some), "tag-in-thinking": len(some) - len(plain)})


@step(version=f"2.{chunking.METHOD_VERSION}")
def chunk_by_llm(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, chunker: LlmChunker, llm: Llm
) -> ArtifactRef:
    """Rows of Chunked: steps of the thinking, grouped by an auxiliary model. Raises what its client does, and
    TooManyUnusable."""
    started = time.monotonic()
    checkpoint, known = place.checkpoint(model), by_id(place, problems)
    rows, dropped = _thinking(place, traces)
    steps_of = [_steps(row.text, place.prompt.thinking) for row in rows]
    asks = [chunking.question(known[row.problem_id].text, s) for row, s in zip(rows, steps_of, strict=True)]
    found = asked_of(place, llm, "chunk", asks, chunker.most_unusable)
    chunked = []
    for row, steps, reply in zip(rows, steps_of, found.replies, strict=True):
        if not isinstance(reply, Unusable):
            ends = token_ends(chunking.joined(steps, reply), checkpoint.token_texts(row.token_ids))
            chunked.append(Chunked(problem_id=row.problem_id, sample=row.sample, ends=tuple(ends)))
    return place.publish(
        "thoughts", chunked, rows_in=len(rows) + dropped.total(), dropped=dict(+(found.unusable + dropped)),
        usage=found.usage, started=started, payee=found.payee,
    )  # fmt: skip


def _steps(text: str, thinking: Thinking) -> list[str]:
    """Of a trace's thinking; what opens it is part of the first."""
    first, *rest = chunking.steps(thinking_of(text, thinking))
    return [first, *rest] if thought_of(first, thinking).strip() or not rest else [first + rest[0], *rest[1:]]


@step(version=f"1.{VERIFIER_VERSION}.{ROLLOUTS_VERSION}")
def value_thoughts(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, chunked: ArtifactRef,
    rollouts: Sampling, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Valued: the right ones among the rollouts that go on after each thought, and after none."""
    started = time.monotonic()
    thoughts_of = by_trace(place.rows(chunked, Chunked))
    rows = [row for row in place.rows(traces, Trace) if (row.problem_id, row.sample) in thoughts_of]
    ends = {row.id: (0, *thoughts_of[row.problem_id, row.sample].ends) for row in rows}
    prober = Prober(
        place, place.checkpoint(model), by_id(place, problems), going_on(rollouts, place.prompt.thinking), seed
    )
    valued = prober.values("value thoughts", rows, ends)
    dropped = {"refused": len(prober.refused)} if prober.refused else {}
    return place.publish("values", valued, rows_in=len(rows), dropped=dropped, usage=prober.usage, started=started)


@step(version=REHEARSE_VERSION)
def rehearse(
    place: Workplace, model: ArtifactRef, traces: ArtifactRef, values: ArtifactRef, importance: Importance,
    most_rounds: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Rehearsed: important thoughts as the turns of one model, condensed others as those of the other."""
    started = time.monotonic()
    checkpoint, trace_of = place.checkpoint(model), by_trace(place.rows(traces, Trace))
    rows, rehearsed = place.rows(values, Valued), []
    for row in rows:
        trace = trace_of[row.problem_id, row.sample]
        texts = [checkpoint.decode(trace.token_ids[start:end]) for start, end in pairwise(row.ends)]
        texts[0] = thought_of(texts[0], place.prompt.thinking)  # where the prompt leaves the opening to the model
        important = thoughts.are_long(thoughts.importance(row.values, row.lengths, importance))
        reply = reply_of(trace.text, place.prompt.thinking) or ""
        dialogue = cold_start.as_dialogue(texts, important, reply, most_rounds)
        if dialogue is not None:
            rehearsed.append(Rehearsed(
                problem_id=row.problem_id, sample=row.sample, important=tuple(important), transcript=str(dialogue)
            ))  # fmt: skip
    dropped = {"too-many-rounds-or-tags": len(rows) - len(rehearsed)} if len(rehearsed) < len(rows) else {}
    counts = {
        "thoughts": sum(len(row.important) for row in rehearsed),
        "important": sum(sum(row.important) for row in rehearsed),
        "turns": sum(len(turns_of(row.transcript)) for row in rehearsed),
    }
    return place.publish(
        "rehearsals", rehearsed, rows_in=len(rows), dropped=dropped, started=started, counts=counts
    )  # fmt: skip


@step(version=f"1.{DIALOGUE_VERSION}")
def turns_to_learn(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, rehearsals: ArtifactRef, protocol: Protocol,
    speaker: Speaker, max_length: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Demonstration: each turn of one speaker, after what it was shown. Turns longer than the protocol allows
    are set aside."""
    started = time.monotonic()
    tongue, known = Tongue(place.checkpoint(model), protocol), by_id(place, problems)
    learnt, dropped, turns = [], Counter[str](), 0
    for row in place.rows(rehearsals, Rehearsed):
        shown = tongue.prompts(known[row.problem_id])[speaker]
        for turn in turns_of(row.transcript):
            opening, rest = tongue.written(turn)
            shown += opening
            if turn.speaker is speaker:
                turns += 1
                if len(rest) > protocol.turn_tokens or len(shown) + len(rest) > max_length:
                    dropped["too-long"] += 1
                else:
                    learnt.append(Demonstration(
                        problem_id=row.problem_id, sample=row.sample, prompt_ids=shown, completion_ids=rest
                    ))  # fmt: skip
            shown += rest
    return place.publish("demonstrations", learnt, rows_in=turns, dropped=dict(dropped), started=started)
