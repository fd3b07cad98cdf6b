"""Adapts requests to endpoints that support only a part of OpenAI's protocol.

A request is built once, with all features; its cache key is computed from that form. Unsupported features are removed
or replaced only when it is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

from models.llm.errors import EndpointError, Kind
from reasoning.data_urls import data_url

MAX_IMAGE_TOKENS = 50_000
"""Tokens that an endpoint counts for an image at most, for an upper bound of its price. Some small models count tens of
thousands."""
AS_JSON = "Reply with one JSON object and nothing else. It must fit this JSON schema:\n"


class Feature(StrEnum):
    """A request feature that an endpoint may not support."""

    JSON_SCHEMA = "response_format json_schema"
    JSON_OBJECT = "response_format json_object"
    MAX_TOKENS = "max_tokens"
    TEMPERATURE = "temperature"
    TOP_P = "top_p"
    SYSTEM = "system messages"


Features = frozenset[Feature]
FORMAT = r"response_?format|json_?\s?(schema|object|mode)|structured|guided|grammar|response_?schema|\bschema\b"
NAMES = {
    Feature.JSON_SCHEMA: FORMAT,
    Feature.JSON_OBJECT: FORMAT,
    Feature.MAX_TOKENS: r"\bmax_tokens\b",
    Feature.TEMPERATURE: r"\btemperature\b",
    Feature.TOP_P: r"\btop_p\b",
    Feature.SYSTEM: r"system['`\"]?[ _](role|message|prompt|instruction)|role.{0,60}\bsystem\b|developer instruction",
}
GUESSES = (
    {Feature.JSON_SCHEMA},
    {Feature.JSON_SCHEMA, Feature.JSON_OBJECT},
    {Feature.MAX_TOKENS},
    {Feature.TEMPERATURE},
    {Feature.SYSTEM},
    set(Feature),
)
"""Features to leave out when an endpoint rejects a request without a reason, most likely first."""


Content = str | list[dict[str, Any]]
"""Of a message: text, or parts."""


def content_of(text: str, images: Sequence[bytes]) -> Content:
    """A message's content: the images, if there are any, and the text."""
    if not images:
        return text
    return [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in images), *_parts(text)]


def longest_content(content: Content) -> int:
    """Upper bound of the tokens of a message's content: a token of text has at least one byte."""
    parts = _parts(content)
    return sum(len(part["text"].encode()) if part["type"] == "text" else MAX_IMAGE_TOKENS for part in parts)


def joined_contents(first: Content, second: Content) -> Content:
    """Both, with a blank line between their texts."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts("\n\n"), *_parts(second)]


def _parts(content: Content) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def adapted(body: dict[str, Any], without: Features) -> dict[str, Any]:
    """The request without these features: the schema moves into the prompt, `max_tokens` becomes
    `max_completion_tokens`, the system message is put before the user's, and sampling uses the endpoint's defaults."""
    sent = dict(body)
    if "response_format" in body and Feature.JSON_SCHEMA in without:
        instruction = AS_JSON + json.dumps(body["response_format"]["json_schema"]["schema"])
        first, *others = body["messages"]
        sent["messages"] = [{**first, "content": joined_contents(first["content"], instruction)}, *others]
        sent["response_format"] = {"type": "json_object"}
        if Feature.JSON_OBJECT in without:
            del sent["response_format"]
    if Feature.SYSTEM in without and sent["messages"][0]["role"] == "system":
        system, user, *others = sent["messages"]
        sent["messages"] = [{**user, "content": joined_contents(system["content"], user["content"])}, *others]
    if Feature.MAX_TOKENS in without:
        sent["max_completion_tokens"] = sent.pop("max_tokens")
    for feature in (Feature.TEMPERATURE, Feature.TOP_P):
        if feature in without:
            sent.pop(feature, None)
    return sent


def features(sent: dict[str, Any]) -> Iterator[Feature]:
    """The features that a request uses."""
    form = sent.get("response_format", {}).get("type")
    yield from (feature for feature in Feature if feature in sent or feature == f"response_format {form}")
    if sent["messages"][0]["role"] == "system":
        yield Feature.SYSTEM


def named_feature(error: EndpointError, sent: dict[str, Any]) -> Feature | None:
    """The unsupported feature that the error names first; None if it names none."""
    if error.kind not in (Kind.REFUSED, Kind.MODEL) and error.status not in (500, 501):
        return None
    found = ((re.search(NAMES[feature], error.words, re.IGNORECASE), feature) for feature in features(sent))
    return min(((match.start(), feature) for match, feature in found if match), default=(0, None))[1]


def next_guess(
    body: dict[str, Any], sent: dict[str, Any], known: Features, guesses: Iterator[set[Feature]]
) -> Features | None:
    """The next set of features to leave out, for an error without a reason; None if no guess changes the request."""
    return next((known | guess for guess in guesses if adapted(body, known | guess) != sent), None)
