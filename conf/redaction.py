"""Hides keys and passwords in settings, messages and files."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HIDDEN = "***"
NAME = re.compile(r"key|secret|passw|pwd|token(?!s)|auth|credential|bearer|cookie", re.IGNORECASE)
KEY = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|hf|xai|nvapi|ghp|r8)[-_]|AIza|AKIA|eyJ)[\w.*-]{2,}"  # key formats of common providers
    r"|(?<=bearer )\S+"
    r"|\b(?=[a-z]*[0-9])(?=[0-9]*[a-z])[a-z0-9]{24,}\b"
    r"|(?<=://)[^/@\s]+(?=@)",  # user name and password of a URL
    re.IGNORECASE,
)
PARAMETER = re.compile(r"([?&][\w-]*(?:key|secret|passw|token|sig)[\w-]*=)[^&#\s]+", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Whether a setting with this name may hold a secret. `max_tokens` may not."""
    return NAME.search(name) is not None


def redacted(text: str) -> str:
    """`text` with everything that looks like a secret replaced by `***`."""
    return PARAMETER.sub(rf"\1{HIDDEN}", KEY.sub(HIDDEN, text))


def without_password(url: str) -> str:
    """Returns `url` unchanged. Raises ValueError if it contains a password, which would be saved with the run."""
    if urlsplit(url).password:
        raise ValueError(
            "holds a password, which would be saved with the run; leave it out and provide it where the client reads "
            "it: in PGPASSWORD or ~/.pgpass for PostgreSQL, in the environment for object stores"
        )
    return url
