"""What clients of OpenAI's chat API send, read as one question with its sampling.

Parameters that change what a reply means are honoured or refused; the others are ignored and named. It knows OpenAI's
format. It must not know how a dialogue is sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

NAME = "long-short"
REFUSED = {
    "tools": "the models call no tools",
    "functions": "the models call no functions",
    "response_format": "replies are text",
    "logprobs": "a message is one of several turns; log-probs of the whole are not available",
    "audio": "replies are text",
}
"""Parameters without which a reply would be something else than the client expects."""
PLAIN: dict[str, Any] = {"response_format": {"type": "text"}, "logprobs": False, "tools": [], "functions": []}
"""Values with which these ask for nothing."""
MAX_CHOICES = 64
NAMES = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What may stand in a header."""
MAX_NAMED = 20


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


def _text_of(content: Any) -> Any:
    """A message's content as a text: given as one, as parts, or as null."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    others = {str(part.get("type")) for part in content if isinstance(part, dict)} - {"text"}
    if others:
        raise ValueError(f"parts of type {', '.join(sorted(others))} are not supported: the models read text only")
    return "".join(_TextPart.model_validate(part).text for part in content)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)] = ""


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One question, and how to answer it."""

    question: str
    sampling: dict[str, float] = field(default_factory=dict)
    """Parameters of vLLM's requests that replace those of the run."""
    max_tokens: int | None = None
    """Of all turns together."""
    stops: Sequence[str] = ()
    """Texts before which the message ends."""


class ChatRequest(BaseModel):
    """A request body. A parameter that is null is not given."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    seed: int | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    stop: str | list[str] | None = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user" or not messages[-1].content.strip():
            raise ValueError("the last message must be the user's, with a text")
        return messages

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> ChatRequest:
        for name, reason in REFUSED.items():
            if self._given(name) and (self.model_extra or {})[name] != PLAIN.get(name):
                raise ValueError(f"{name} is not supported: {reason}")
        if self.stream and (self.n or 1) > 1:
            raise ValueError("n above 1 is not supported with stream")
        return self

    def _given(self, name: str) -> bool:
        return (self.model_extra or {}).get(name) is not None

    def ask(self) -> Ask:
        names = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        limit = self.max_completion_tokens or self.max_tokens
        return Ask(question_of(self.messages), given, limit, [stop for stop in stops if stop])

    @property
    def ignored(self) -> list[str]:
        """Names of given parameters that have no effect; of many, or of what looks like no name, only some."""
        names = (name for name in self.model_extra or {} if self._given(name) and name not in REFUSED)
        return sorted(name for name in names if NAMES.fullmatch(name))[:MAX_NAMED]

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def question_of(messages: Sequence[Message]) -> str:
    """The messages as one question, since the models are trained on single questions: instructions first, then earlier
    messages under the names of their speakers."""
    instructions = [one.content for one in messages if one.role in ("system", "developer") and one.content.strip()]
    spoken = [one for one in messages if one.role in ("user", "assistant")]
    if len(spoken) == 1:
        return "\n\n".join([*instructions, spoken[0].content])
    return "\n\n".join([*instructions, *(f"{one.role.capitalize()}: {one.content}" for one in spoken)])


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of `stops`, and whether there was one."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(ends)], True) if ends else (text, False)
