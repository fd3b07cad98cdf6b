"""Errors of chat endpoints, classified by status, headers and text.

Endpoints report the same error by status, by code or only in text, and some inside a reply of status 200.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from conf.redaction import HIDDEN, redacted

MAX_SHOWN = 400
"""Characters of an invalid reply or an error that are shown."""
MAX_SEARCHED = 4000
"""Characters of an error that are searched."""
ECHOES = {"input", "ctx", "body", "request", "prompt", "messages"}
"""Fields in which endpoints repeat the request."""


class Kind(StrEnum):
    NO_MONEY = "no-money"
    KEY = "key"
    MODEL = "model"
    """No such model, or no such URL."""
    TRANSIENT = "transient"
    """Worth a retry: rate limits, overload, timeouts."""
    CUT_OFF = "cut-off"
    """Thinking used up all allowed tokens; some endpoints report that as an error."""
    TOO_LONG = "too-long"
    FILTERED = "filtered"
    REFUSED = "refused"
    NO_CHAT = "no-chat"
    """The reply is not a chat completion."""


class EndpointError(Exception):
    """`text` is one line without secrets."""

    def __init__(self, kind: Kind, text: str, status: int = 0, words: str = "", retry_after: float | None = None):
        super().__init__(text)
        self.kind, self.text, self.status = kind, text, status
        self.words = words
        """The endpoint's full error text, to search for parameter names."""
        self.retry_after = retry_after
        """Pause that the endpoint asks for, seconds."""


WORDS = (
    (
        Kind.NO_MONEY,
        r"insufficient[ _-]?(account[ _])?(quota|balance|credits?|funds)|billing[ _](hard|not)|"
        r"exceeded_current_quota|(balance|credits?) (is|are) (too low|insufficient|exhausted)|"
        r"payment[ _]required|out of credits|no credits|any credits|available credits|arrear|"
        r"budget[ _]?(has been )?exceeded|exceeded.{0,20}(budget|spending limit|included credits)|"
        r"余额不足|欠费",
    ),
    (Kind.FILTERED, r"content[ _-]?(policy|filter|management)|flagged|moderation|safety system|data_inspection_failed"),
    (
        Kind.KEY,
        r"(invalid|incorrect|missing|no|wrong)[ _]api[ _-]?key|api[ _-]?key[ _](not valid|invalid|is)|"
        r"invalid_?api_?key|authentication",
    ),
    (Kind.CUT_OFF, r"output limit was reached|try again with higher max\w*_tokens"),
    (
        Kind.TOO_LONG,
        r"context[ _-]?(length|window|size|limit)|maximum context|reduce the length|prompt is too long|"
        r"max\w*_tokens\W.{0,80}(too large|exceed|at most|less than|range|maximum)|"
        r"(range|maximum).{0,40}max\w*_tokens|string_above_max_length",
    ),
    (
        Kind.MODEL,
        r"model[ _](not[ _](found|exist)|does not exist)|model.{0,80}(does not exist|not found|not exist)|"
        r"invalid model|not a valid model|no such model|unknown model",
    ),
)
"""The first match counts."""
QUOTA_OF_A_MOMENT = re.compile("resource_exhausted|retryinfo|per[ _]?(minute|day)", re.IGNORECASE)
"""Marks an exceeded quota as one that refills."""
TRANSIENT = {408, 409, 425, 429}
CODES = (
    (429, r"rate[ _-]?limit|too many requests|throttl"),
    (503, r"overloaded|unavailable|capacity|busy"),
    (401, r"auth|api[ _-]?key"),
    (404, r"not[ _]found"),
    (400, r"invalid[ _]request|bad[ _]request|unsupported"),
)
"""Statuses by error text, for errors without a status."""


def error_of(status: int, headers: Mapping[str, str], content: bytes, now: float, key: str = "") -> EndpointError:
    """Classifies an error reply. `now`: seconds since 1970, for a Retry-After given as a date. `key`: is hidden in the
    text."""
    text = content[: 4 * MAX_SEARCHED].decode(errors="replace")
    try:
        strings = list(_strings(json.loads(text)))
    except (ValueError, RecursionError):
        strings = [text]
    words = " ".join(strings)[:MAX_SEARCHED]
    shown = one_line(words, key) or "no reason given"
    return EndpointError(
        _kind(status, words), f"{status}: {shown}" if status else shown, status, words, retry_after(headers, now)
    )


def error_inside(body: dict[str, Any]) -> tuple[int, bytes] | None:
    """Status and content of an error inside a reply of status 200; None if there is none."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = body.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if not error and not choices and (body.get("object") == "error" or {"code", "message"} <= body.keys()):
        error = body
    if not error:
        return None
    content = json.dumps(error)
    return _status(error, content), content.encode()


def _status(error: Any, words: str) -> int:
    """The status of an error; 0 if unknown."""
    for name in ("code", "status", "status_code"):
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, int | str) and re.fullmatch("[45][0-9][0-9]", str(value)):
            return int(value)
    return next((status for status, pattern in CODES if re.search(pattern, words, re.IGNORECASE)), 0)


def _kind(status: int, words: str) -> Kind:
    kind = next((kind for kind, pattern in WORDS if re.search(pattern, words, re.IGNORECASE)), None)
    spent = "exceeded your current quota" in words and not QUOTA_OF_A_MOMENT.search(words)
    if "in_flight_budget" in words:  # OpenRouter: the money is reserved for other requests
        return Kind.TRANSIENT
    if status == 402 or kind is Kind.NO_MONEY or spent:
        return Kind.NO_MONEY
    if status in TRANSIENT or status >= 500:
        return Kind.TRANSIENT
    if status == 401 or (status == 403 and kind not in (Kind.FILTERED, Kind.MODEL)):
        return Kind.KEY
    if status == 413:
        return Kind.TOO_LONG
    if status in (404, 405):
        return Kind.MODEL
    return kind or (Kind.REFUSED if status else Kind.TRANSIENT)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from a number or a date; None if missing or meaningless."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        return seconds if seconds > 0 and math.isfinite(seconds) else None
    try:
        seconds = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _strings(value: Any) -> Iterator[str]:
    """All strings in an error body, at any depth, except those repeated from the request."""
    rest = [value]
    while rest:
        match rest.pop(0):
            case dict() as fields:
                rest[:0] = [inner for name, inner in fields.items() if name not in ECHOES]
            case list() as items:
                rest[:0] = items
            case str() as text:
                yield text


def one_line(text: str, key: str = "") -> str:
    """Untrusted text as one short line without secrets; some endpoints repeat the key."""
    text = " ".join(text.split())
    return redacted(text.replace(key, HIDDEN) if key else text)[:MAX_SHOWN]
