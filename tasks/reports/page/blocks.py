"""Problems in compressed blocks, which the page unpacks one at a time, and the index of all of them.

It knows bytes and the form of the file. It must not know pipelines.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tasks.reports.page.views import ProblemView

BLOCK_CHARS = 1 << 18
"""Characters of JSON in a block: small enough to unpack at a click."""
MAX_BYTES = 240 << 20
"""Characters of all blocks; further problems are only counted. Browsers open larger files slowly or not at all."""
TITLE_CHARS = 200
"""Characters of a problem in the list, which are also what a search looks through."""


class Blocks:
    """Packs problems as they come. `left_out`: how many no longer fitted."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self._max_bytes = max_bytes
        self._sets: dict[str, int] = {}
        self._tags: dict[str, int] = {}
        self._rows: list[list[Any]] = []
        self._bytes = 0
        self.left_out = 0

    def pack(self, problems: Iterable[ProblemView]) -> Iterator[str]:
        """One base64 text per block."""
        waiting: list[str] = []
        for problem in problems:
            if self._bytes > self._max_bytes:
                self.left_out += 1
                continue
            self._rows.append(self._row(problem, len(waiting)))
            waiting.append(problem.model_dump_json())
            if sum(map(len, waiting)) >= BLOCK_CHARS:
                yield self._packed(waiting)
                waiting = []
        if waiting:
            yield self._packed(waiting)

    def index(self) -> str:
        """The index of all packed problems, as base64."""
        return packed(json.dumps({"sets": list(self._sets), "tags": list(self._tags), "rows": self._rows}))

    def _row(self, problem: ProblemView, place: int) -> list[Any]:
        return [
            problem.id,
            " ".join(problem.text[: 4 * TITLE_CHARS].split())[:TITLE_CHARS],
            self._sets.setdefault(problem.set, len(self._sets)),
            problem.level,
            problem.subject,
            [self._tags.setdefault(tag, len(self._tags)) for tag in problem.tags],
            place,
        ]

    def _packed(self, waiting: list[str]) -> str:
        text = packed(f"[{','.join(waiting)}]")
        self._bytes += len(text)
        return text


def packed(text: str) -> str:
    """`text` compressed, as base64: no text can end the element that holds it."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")
