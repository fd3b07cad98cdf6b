"""How a request is worded for an endpoint that does not know all of OpenAI's protocol.

Knows: parameters, their substitutes, how refusals name them. Must not know: HTTP, who asks, what is kept.

A request is made once, in full; it is what identifies its reply. What an endpoint refuses is left out or put otherwise
only on the way there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from models.llm.errors import EndpointError, Kind

AS_JSON = "Reply with one JSON object and nothing else. It must fit this JSON schema:\n"


class Feature(StrEnum):
    """What an endpoint may refuse."""

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
"""What an endpoint may mean that refuses without a reason, the likely first."""


def worded(body: dict[str, Any], without: Features) -> dict[str, Any]:
    """The request without these features: the schema told in the prompt, `max_completion_tokens` for `max_tokens`, the
    system message before the user's, sampling at the endpoint's defaults."""
    sent = dict(body)
    if "response_format" in body and Feature.JSON_SCHEMA in without:
        told = AS_JSON + json.dumps(body["response_format"]["json_schema"]["schema"])
        first, *others = body["messages"]
        sent["messages"] = [{**first, "content": f"{first['content']}\n\n{told}"}, *others]
        sent["response_format"] = {"type": "json_object"}
        if Feature.JSON_OBJECT in without:
            del sent["response_format"]
    if Feature.SYSTEM in without and sent["messages"][0]["role"] == "system":
        system, user, *others = sent["messages"]
        sent["messages"] = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]
    if Feature.MAX_TOKENS in without:
        sent["max_completion_tokens"] = sent.pop("max_tokens")
    for feature in (Feature.TEMPERATURE, Feature.TOP_P):
        if feature in without:
            sent.pop(feature, None)
    return sent


def features(sent: dict[str, Any]) -> Iterator[Feature]:
    """Those that a request makes use of."""
    form = sent.get("response_format", {}).get("type")
    yield from (feature for feature in Feature if feature in sent or feature == f"response_format {form}")
    if sent["messages"][0]["role"] == "system":
        yield Feature.SYSTEM


def named_feature(error: EndpointError, sent: dict[str, Any]) -> Feature | None:
    """The feature of the request that the endpoint refuses: the one that it names first."""
    if error.kind not in (Kind.REFUSED, Kind.MODEL) and error.status not in (500, 501):
        return None
    found = ((re.search(NAMES[feature], error.words, re.IGNORECASE), feature) for feature in features(sent))
    return min(((match.start(), feature) for match, feature in found if match), default=(0, None))[1]


def next_guess(
    body: dict[str, Any], sent: dict[str, Any], known: Features, guesses: Iterator[set[Feature]]
) -> Features | None:
    """What else an endpoint may refuse that gives no reason; None where no guess is left that changes the request."""
    return next((known | guess for guess in guesses if worded(body, known | guess) != sent), None)
