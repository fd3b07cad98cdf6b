"""What a chat endpoint's reply holds, in the forms that endpoints and models give it.

Knows: the reply's JSON, JSON inside of text. Must not know: HTTP, errors of endpoints, what a reply is for.

Replies are hostile: an object is found by a parser, and counts only as its schema reads it.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from models.llm.errors import one_line
from models.llm.reply_store import CachedReply
from reasoning.llm_queries import InvalidReply, LlmQuery, R, Solution
from reasoning.thinking import CLOSE_THINK

MOST_TOKENS = 2**31 - 1
"""A database keeps no larger count."""
MOST_OBJECTS = 64
"""Places of a text at which JSON is looked for."""
OBJECT = re.compile(r'\{\s*["}]')
END_OF_THINKING = re.compile(
    r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|"
    r"<\|channel\|>final<\|message\|>"
)
OPEN_THINKING = re.compile(r"\s*(?:<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]|◁think▷)")
LATEX = re.compile(
    r"""((?<!\\)(?:\\\\)*)\\(?=[bf][a-z]|
    (?:ne|neq|neg|nabla|not|notin|right|rightarrow|rangle|rfloor|rceil|rho|text|textbf|theta|times|to|tan|tfrac|tau|
    therefore|triangle|tilde)(?![a-z])|u(?![0-9a-fA-F]{4})|[^"\\/bfnrtu])""",
    re.VERBOSE,
)
"""The backslash of a formula's command that JSON would read as a control character, or not at all."""
TEXTS = ("text", "output_text")
DECLINED, FILTERED = "refusal", "content_filter"
"""Ends of a reply in which it was held back."""
ENDS = {
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "safety": FILTERED,
    "sensitive": FILTERED,
    "recitation": FILTERED,
    "prohibited_content": FILTERED,
}
"""What some endpoints call them."""


def _joined(content: Any, *kinds: str) -> str:
    """A text, or the text of a list's chunks of these kinds; what is neither is empty."""
    if isinstance(content, str):
        return content
    chunks = content if isinstance(content, list) else []
    told = [chunk if isinstance(chunk, dict) else {"type": "text", "text": chunk} for chunk in chunks]
    return "".join(_joined(one.get("text") or one.get("thinking"), *TEXTS) for one in told if one.get("type") in kinds)


def _counted(value: Any) -> int | None:
    """None for what counts no tokens: a prompt has some, and so has a reply."""
    return value if type(value) is int and 0 < value <= MOST_TOKENS else None


Tokens = Annotated[int | None, BeforeValidator(_counted)]


class _Usage(BaseModel):
    prompt_tokens: Tokens = None
    completion_tokens: Tokens = None


class _Message(BaseModel):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    """Thinking that is told apart has either name, and some endpoints send both, one of them empty."""
    refusal: Any = None

    @property
    def text(self) -> str:
        return _joined(self.content, *TEXTS)

    @property
    def thinking(self) -> str:
        chunks = _joined(self.content, "thinking", "reasoning") if isinstance(self.content, list) else ""
        told = (_joined(self.reasoning_content, *TEXTS), _joined(self.reasoning, *TEXTS), chunks)
        return next((text for text in told if text.strip()), "")


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Chat(BaseModel):
    """What is read of a chat's reply: the client itself checks nothing."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage, BeforeValidator(lambda value: value if isinstance(value, dict) else {})] = _Usage()


def json_body(content: bytes) -> dict[str, Any]:
    """Of a reply; empty where it is no JSON object."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def parse_chat_reply(content: bytes, with_thinking: bool) -> CachedReply:
    """Raises ValueError where it is no chat's reply."""
    chat = _Chat.model_validate_json(content.removeprefix(BOM_UTF8))
    message, finish = chat.choices[0].message, (chat.choices[0].finish_reason or "").lower()[:32]
    finish = ENDS.get(finish, finish)
    text, thinking = message.text, message.thinking
    if not text and isinstance(message.refusal, str) and message.refusal:
        text, finish = message.refusal, DECLINED
    elif with_thinking and thinking:
        text = f"{thinking}{CLOSE_THINK}{text}"
    text = text.replace("\0", "")  # PostgreSQL keeps none
    return CachedReply(text, finish, chat.usage.prompt_tokens, chat.usage.completion_tokens)


def parse_reply(ask: LlmQuery[R], reply: CachedReply) -> R | InvalidReply:
    """The reply's values."""
    if reply.finish == FILTERED:
        return InvalidReply("filtered", "the endpoint's content filter held it back")
    if reply.finish == DECLINED:
        return InvalidReply("declined", f"the model declines: {one_line(reply.content)}")
    if ask.reply is Solution:
        if CLOSE_THINK not in reply.content:
            return InvalidReply(
                "without-thinking", f"its thinking does not end with {CLOSE_THINK}, or is not shown at all"
            )
        return Solution(text=reply.content, truncated=reply.finish == "length")  # type: ignore[return-value]
    if reply.finish == "length":
        return InvalidReply(
            "cut-off", f"it is longer than {ask.max_tokens} tokens, thinking included; raise {ask.limit}"
        )
    return _valued(ask, reply.content)


def _valued(ask: LlmQuery[R], text: str) -> R | InvalidReply:
    """Of the whole text; else of the one object in it that is not thinking."""
    text = LATEX.sub(r"\1\\\\", text.removeprefix("\ufeff").strip())
    try:
        return ask.reply.model_validate_json(text)
    except ValidationError as whole:
        error = whole
    said = END_OF_THINKING.split(text)[-1]
    if OPEN_THINKING.match(said):
        return InvalidReply("malformed", "its thinking does not end")
    found: list[R] = []
    for candidate in json_objects(said):
        try:
            value = ask.reply.model_validate_json(candidate)
        except ValidationError as other:
            error = other
        else:
            found += [value] * (value not in found)
    if len(found) == 1:
        return found[0]
    return InvalidReply("malformed", f"it holds {len(found)} different replies" if found else _told(error))


def json_objects(text: str) -> Iterator[str]:
    """Those that stand in it side by side, fenced or between other words."""
    decoder, end = json.JSONDecoder(), 0
    for match in islice(OBJECT.finditer(text), MOST_OBJECTS):
        if match.start() >= end:
            try:
                _, end = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                continue
            yield text[match.start() : end]


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return one_line(f"{where + ': ' if where else ''}{first['msg']}")
