"""How fast a page with many long traces opens, and answers a click.

    python -m bench.page [TRACES] [CHARACTERS]

Needs Chromium. Default: 10,000 traces of 30,000 characters (about 8,192 tokens) in 100 segments. Prints the file's
size, the time to write and to open it, and the time from a click on a problem in another block until its text is laid
out: median and longest of 40.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from reasoning.records import Verdict
from tasks.reports.page.page import write_page
from tasks.reports.page.views import Piece, ProblemView, TraceView
from tests.browser import browser, url_of
from tests.tasks.reports.page.test_page import report

SEGMENTS, CLICKS = 100, 40
CLICK = """(async () => {
  const list = document.getElementById("list"), start = performance.now();
  list.scrollTop = PLACE * 52;
  await new Promise((done) => requestAnimationFrame(done));
  document.body.dataset.shown = "";
  const clicked = performance.now();
  document.getElementById("row-PLACE").click();
  while (document.body.dataset.shown !== "pPLACE") await new Promise((done) => setTimeout(done, 1));
  document.getElementById("detail").getBoundingClientRect();
  return performance.now() - clicked;
})()"""


def problems(count: int, characters: int) -> Iterator[ProblemView]:
    words = [f"{random.Random(n).getrandbits(40):x}" for n in range(4000)]  # compresses about as thinking does
    for number in range(count):
        chance = random.Random(f"trace {number}")
        text = " ".join(chance.choices(words, k=characters // 10))[:characters]
        size = max(1, len(text) // SEGMENTS)
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        pieces = tuple(Piece(text=part, state="kept", right=at % 9, total=8) for at, part in enumerate(parts))
        trace = TraceView(name="sample 0", verdict=Verdict.RIGHT, tokens=8192, status="", threshold=0.5, pieces=pieces)
        yield ProblemView(
            id=f"p{number}",
            set="training",
            text=f"Problem {number}",
            answer="4",
            level=number % 10,
            subject=None,
            tags=(),
            traces=(trace,),
        )


def main() -> None:
    count, characters = (int(sys.argv[n]) if len(sys.argv) > n else given for n, given in ((1, 10_000), (2, 30_000)))
    with TemporaryDirectory() as folder, browser() as page:
        started = time.monotonic()
        path = write_page(Path(folder) / "report.html", report(), problems(count, characters))
        written = time.monotonic() - started
        started = time.monotonic()
        page.open(url_of(path), "document.body.dataset.shown")
        opened = time.monotonic() - started
        shown = page.run("document.getElementById('count').textContent")
        listed = int(shown.split()[0].replace(",", ""))
        places = [random.Random(n).randrange(listed) for n in range(CLICKS)]
        times = [page.run(CLICK.replace("PLACE", str(place))) for place in places]
        print(f"{shown}; {path.stat().st_size / 1e6:.0f} MB, written in {written:.0f} s, opened in {opened:.1f} s")
        print(f"a click: median {median(times):.0f} ms, longest {max(times):.0f} ms; errors: {page.errors}")


if __name__ == "__main__":
    main()
