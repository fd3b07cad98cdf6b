"""Splits a completion into thinking and reply.

Harmony's channels are treated as tags: the text between the two messages closes the thinking.
"""

from __future__ import annotations

from conf.prompts import Harmony, NoThinking, Tags
from reasoning.answers.boxed import boxed, boxed_span

Thinking = Tags | Harmony | NoThinking
THINK = Tags()
CLOSE_THINK = THINK.close


def thought_of(text: str, thinking: Thinking = THINK) -> str:
    """The completion from the start of the thinking, whether the opening tag was in the prompt or was generated."""
    return text.lstrip().removeprefix(thinking.open).lstrip("\n")


def thinking_of(text: str, thinking: Thinking = THINK) -> str:
    """Text before the closing tag; the whole text if there is none."""
    return text.split(thinking.close)[0]


def reply_of(text: str, thinking: Thinking = THINK) -> str | None:
    """Text after the thinking, without the reply's own tags. None if the thinking is not closed, or is reopened and not
    closed again."""
    if isinstance(thinking, NoThinking):
        return text
    _, tag, reply = text.partition(thinking.close)
    if not tag and isinstance(thinking, Harmony) and text.lstrip().startswith(thinking.reply_open):
        tag, reply = thinking.reply_open, text.partition(thinking.reply_open)[2]
    if thinking.open in reply:
        _, tag, reply = reply.rpartition(thinking.open)[2].partition(thinking.close)
    return reply_without_tags(reply, thinking) if tag else None


def final_answer(completion: str, thinking: Thinking = THINK) -> str | None:
    """Boxed answer in the reply. None if the thinking is not closed, even if it contains a box."""
    reply = reply_of(completion, thinking)
    return None if reply is None else boxed(reply)


def answer_end(completion: str, thinking: Thinking = THINK) -> int | None:
    """Number of characters up to the end of the final answer, its closing brace included. None without an answer."""
    reply = reply_of(completion, thinking)
    span = None if reply is None else boxed_span(reply)
    return None if reply is None or span is None else completion.rindex(reply) + span[1] + 1


def written_as(text: str, thinking: Thinking) -> str:
    """A completion with default tags rewritten with those of `thinking`, from the start of the thinking."""
    thought, closed, reply = thought_of(text).partition(THINK.close)
    return joined(thought, reply, thinking) if closed else thought


def joined(thought: str, reply: str, thinking: Thinking) -> str:
    """A completion from the start of the thinking, with the tags of `thinking`."""
    return f"{thought}{thinking.close}{thinking.answer_open}{reply}{thinking.answer_close}"


def reply_without_tags(reply: str, thinking: Thinking) -> str:
    """Text between the reply's own tags; all of `reply` for models without such tags."""
    if thinking.answer_open:
        reply = reply.rpartition(thinking.answer_open)[2]
    return reply.partition(thinking.answer_close)[0] if thinking.answer_close else reply


def is_closed_once(text: str, thinking: Thinking = THINK) -> bool:
    """Whether the text contains the closing tag exactly once."""
    return text.count(thinking.close) == 1
