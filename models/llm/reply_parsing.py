"""Parses chat replies in the forms that endpoints and models produce.

Replies are untrusted: a JSON object is extracted by a parser and must fit its schema.
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

MAX_TOKENS = 2**31 - 1
"""The largest count that the database can store."""
MAX_OBJECTS = 64
"""Positions of a text at which JSON is tried."""
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
"""The backslash of a LaTeX command that JSON would read as a control character or reject."""
TEXTS = ("text", "output_text")
DECLINED, FILTERED = "refusal", "content_filter"
"""Finish reasons of withheld replies."""
ENDS = {
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "safety": FILTERED,
    "sensitive": FILTERED,
    "recitation": FILTERED,
    "prohibited_content": FILTERED,
}
"""Finish reasons of some endpoints, mapped to OpenAI's."""


def _joined_text(content: Any, *kinds: str) -> str:
    """A string, or the joined text of a list's chunks of these kinds; empty for anything else."""
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else []
    chunks = [item if isinstance(item, dict) else {"type": "text", "text": item} for item in items]
    return "".join(
        _joined_text(one.get("text") or one.get("thinking"), *TEXTS) for one in chunks if one.get("type") in kinds
    )


def _token_count(value: Any) -> int | None:
    """A token count; None if implausible. Prompts and replies have at least one token."""
    return value if type(value) is int and 0 < value <= MAX_TOKENS else None


Tokens = Annotated[int | None, BeforeValidator(_token_count)]


class _Usage(BaseModel):
    prompt_tokens: Tokens = None
    completion_tokens: Tokens = None


class _Message(BaseModel):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    """Separate thinking has either name; some endpoints send both, one of them empty."""
    refusal: Any = None

    @property
    def text(self) -> str:
        return _joined_text(self.content, *TEXTS)

    @property
    def thinking(self) -> str:
        chunks = _joined_text(self.content, "thinking", "reasoning") if isinstance(self.content, list) else ""
        texts = (_joined_text(self.reasoning_content, *TEXTS), _joined_text(self.reasoning, *TEXTS), chunks)
        return next((text for text in texts if text.strip()), "")


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Chat(BaseModel):
    """The fields of a chat completion that are used; the openai client does not validate them."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage, BeforeValidator(lambda value: value if isinstance(value, dict) else {})] = _Usage()


def json_body(content: bytes) -> dict[str, Any]:
    """A reply's JSON object; empty if it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def parse_chat_reply(content: bytes, with_thinking: bool) -> CachedReply:
    """Parses a chat completion. `with_thinking`: keeps separate thinking before the text. Raises ValueError for
    anything else."""
    chat = _Chat.model_validate_json(content.removeprefix(BOM_UTF8))
    message, finish = chat.choices[0].message, (chat.choices[0].finish_reason or "").lower()[:32]
    finish = ENDS.get(finish, finish)
    text, thinking = message.text, message.thinking
    if not text and isinstance(message.refusal, str) and message.refusal:
        text, finish = message.refusal, DECLINED
    elif with_thinking and thinking:
        text = f"{thinking}{CLOSE_THINK}{text}"
    text = text.replace("\0", "")  # PostgreSQL cannot store it
    return CachedReply(text, finish, chat.usage.prompt_tokens, chat.usage.completion_tokens)


def parse_reply(query: LlmQuery[R], reply: CachedReply) -> R | InvalidReply:
    """Parses a reply by the query's schema."""
    if reply.finish == FILTERED:
        return InvalidReply("filtered", "withheld by the endpoint's content filter")
    if reply.finish == DECLINED:
        return InvalidReply("declined", f"the model declined: {one_line(reply.content)}")
    if query.reply is Solution:
        if CLOSE_THINK not in reply.content:
            return InvalidReply("without-thinking", f"its thinking does not end with {CLOSE_THINK}, or is not shown")
        return Solution(text=reply.content, truncated=reply.finish == "length")  # type: ignore[return-value]
    if reply.finish == "length":
        return InvalidReply(
            "cut-off", f"it is longer than {query.max_tokens} tokens, thinking included; raise {query.limit}"
        )
    return _parsed(query, reply.content)


def _parsed(query: LlmQuery[R], text: str) -> R | InvalidReply:
    """Parses the text as JSON; otherwise the only JSON object in it outside the thinking."""
    text = LATEX.sub(r"\1\\\\", text.removeprefix("\ufeff").strip())
    try:
        return query.reply.model_validate_json(text)
    except ValidationError as full_text_error:
        error = full_text_error
    answer = END_OF_THINKING.split(text)[-1]
    if OPEN_THINKING.match(answer):
        return InvalidReply("malformed", "its thinking does not end")
    found: list[R] = []
    for candidate in json_objects(answer):
        try:
            value = query.reply.model_validate_json(candidate)
        except ValidationError as other:
            error = other
        else:
            found += [value] * (value not in found)
    if len(found) == 1:
        return found[0]
    return InvalidReply("malformed", f"it holds {len(found)} different replies" if found else _error_detail(error))


def json_objects(text: str) -> Iterator[str]:
    """The top-level JSON objects in a text, fenced or between other words."""
    decoder, end = json.JSONDecoder(), 0
    for match in islice(OBJECT.finditer(text), MAX_OBJECTS):
        if match.start() >= end:
            try:
                _, end = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                continue
            yield text[match.start() : end]


def _error_detail(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return one_line(f"{where + ': ' if where else ''}{first['msg']}")
