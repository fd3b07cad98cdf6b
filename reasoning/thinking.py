"""A completion's thinking and its reply, told apart by what the model writes between them.

Knows: tags. Must not know: models, tokens, how answers are compared.

Harmony's channels are tags, too: what ends the one message and opens the other closes the thinking.
"""

from __future__ import annotations

from conf.prompts import Harmony, Tags
from reasoning.answers.boxed import boxed

Thinking = Tags | Harmony
THINK = Tags()
CLOSE_THINK = THINK.close


def thought_of(text: str, thinking: Thinking = THINK) -> str:
    """A completion from where the thinking begins, whether or not the prompt has opened it already."""
    return text.lstrip().removeprefix(thinking.open).lstrip("\n")


def thinking_of(text: str, thinking: Thinking = THINK) -> str:
    """What comes before the closing tag; all of it when thinking never ended."""
    return text.split(thinking.close)[0]


def reply_of(text: str, thinking: Thinking = THINK) -> str | None:
    """What follows the thinking, without tags of its own; None when thinking never ended, or began again and did not
    end."""
    _, tag, reply = text.partition(thinking.close)
    if not tag and isinstance(thinking, Harmony) and text.lstrip().startswith(thinking.opens_reply):
        tag, reply = thinking.opens_reply, text.partition(thinking.opens_reply)[2]
    if thinking.open in reply:
        _, tag, reply = reply.rpartition(thinking.open)[2].partition(thinking.close)
    if thinking.answer_open:
        reply = reply.rpartition(thinking.answer_open)[2]
    if thinking.answer_close:
        reply = reply.partition(thinking.answer_close)[0]
    return reply if tag else None


def final_answer(completion: str, thinking: Thinking = THINK) -> str | None:
    """The boxed answer of the reply. Thinking that never ended has no answer, whatever it boxed on the way."""
    reply = reply_of(completion, thinking)
    return None if reply is None else boxed(reply)


def written_as(text: str, thinking: Thinking) -> str:
    """A completion with the usual tags in those of another model, from where its thinking begins."""
    thought, closed, reply = thought_of(text).partition(THINK.close)
    return f"{thought}{thinking.close}{thinking.answer_open}{reply}{thinking.answer_close}" if closed else thought


def is_closed_once(text: str, thinking: Thinking = THINK) -> bool:
    return text.count(thinking.close) == 1
