"""Problems for pages in tests, and what a page holds."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from reasoning.records import Verdict
from tasks.reports.page.views import AnswerView, Piece, ProblemView, TextView, TraceView, Turn

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "&lt;b&gt; {{ 7 * 7 }} ${7*7} javascript:alert(1) <!-- -->",
    "\u202eright to left\u202c \u0000\u001b[31m \u2066isolated",
    "a" * 1_000_000,
)


def problem(number: int, text: str = "", pieces: int = 4, **changes: Any) -> ProblemView:
    """A training problem with one trace."""
    parts = [
        Piece(text=f"Step {at}. {text}", state="kept" if at < 2 else "cut", right=at, total=8) for at in range(pieces)
    ]
    trace = TraceView(
        name="sample 0",
        verdict=Verdict.RIGHT,
        tokens=100 + number,
        status="Thinking cut after segment 2 of 4.",
        threshold=0.5,
        pieces=(*parts, Piece(text=text or "So 4.", state="added", note="the ending")),
        texts=(TextView(title="Pair 1, chosen", text=text or "So 4.", tokens=5),),
    )
    values: dict[str, Any] = {
        "id": f"p{number}",
        "set": "training",
        "text": text or f"Problem {number}: what is {number} and {number}?",
        "answer": "4",
        "level": 1 + number % 3,
        "subject": None,
        "tags": ("cut",) if number % 2 else (),
        "traces": (trace,),
    }
    return ProblemView(**(values | changes))


def answered(number: int, text: str) -> ProblemView:
    """A benchmark problem with an answer and a dialogue."""
    answers = (
        AnswerView(model="base", verdict=Verdict.WRONG, tokens=9, truncated=True, turns=(Turn(speaker="", text=text),)),
        AnswerView(
            model=f"pair {text}",
            verdict=Verdict.RIGHT,
            tokens=9,
            truncated=False,
            turns=(Turn(speaker="long", text=text), Turn(speaker="short", text="\\boxed{4}")),
            facts={"rewards": text[:50]},
        ),
    )
    return problem(number, text, set="a benchmark", traces=(), answers=answers, tags=("wrong → right",))


def contents(page: Path) -> dict[str, Any]:
    """The unpacked index and problems of a page."""
    found = re.findall(r'<script type="application/octet-stream" id="([\w-]+)">([^<]*)</script>', page.read_text())
    unpacked = {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}
    index = unpacked.pop("index")
    return {"index": index, "problems": [problem for block in unpacked.values() for problem in block]}
