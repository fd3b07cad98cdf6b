"""The page in a headless Chromium: hostile text stays text, nothing leaves, keys and filters work, clicks are quick."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.reports.page.page import write_page
from tests.browser import Page, browser, chromium, url_of
from tests.tasks.reports.page.pages import HOSTILE, answered, problem
from tests.tasks.reports.page.test_page import report

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium")
READY = "document.body.dataset.shown"


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as page:
        yield page
    assert page.errors == []
    assert all(url.startswith(("file:", "data:")) for url in page.requests), page.requests


def test_hostile_text_runs_nowhere(tmp_path: Path, page: Page):
    traces = [problem(number, text) for number, text in enumerate(HOSTILE)]
    problems = [*traces, *(answered(10 + number, text) for number, text in enumerate(HOSTILE))]
    hostile = report() | {"warnings": [HOSTILE[0]]}
    page.open(url_of(write_page(tmp_path / "report.html", hostile, problems)), READY)
    for one in problems[1:]:
        page.press("j")
        page.wait(f"{READY} === '{one.id}'")
        assert page.run("document.querySelectorAll('#detail img, #detail script').length") == 0
    assert page.run("document.title") == "dto tiny"


def test_ten_thousand_traces(tmp_path: Path, page: Page):
    problems = (problem(number) for number in range(10_000))
    page.open(url_of(write_page(tmp_path / "report.html", report(), problems)), READY)
    assert page.run("document.getElementById('count').textContent") == "10,000 of 10,000 problems"
    assert page.run("document.querySelectorAll('.row').length") < 100
    page.run("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
    page.wait("document.querySelector('.row:last-child b').textContent.startsWith('Problem 9999:')")
    page.run("document.querySelector('.row:last-child').click()")
    page.wait(f"{READY} === 'p9999'")


def test_what_is_shown_is_the_text_with_hidden_signs_visible(tmp_path: Path, page: Page):
    problems = [problem(n, text) for n, text in enumerate(HOSTILE[:4])]
    page.open(url_of(write_page(tmp_path / "report.html", report(), problems)), READY)
    assert page.run("document.querySelector('.problem').textContent") == HOSTILE[0]
    for number in (1, 2, 3):
        page.press("j")
        page.wait(f"{READY} === 'p{number}'")
    shown = page.run("document.querySelector('.problem').textContent")
    assert shown == "⟦U+202E⟧right to left⟦U+202C⟧ ⟦U+0000⟧⟦U+001B⟧[31m ⟦U+2066⟧isolated"


def test_a_line_of_a_megabyte_is_cut_until_it_is_asked_for(tmp_path: Path, page: Page):
    page.open(url_of(write_page(tmp_path / "report.html", report(), [problem(0, HOSTILE[4])])), READY)
    assert page.run("document.querySelector('.problem').textContent.length") < 30_000
    page.run("document.querySelector('.problem button').click()")
    assert page.run("document.querySelector('.problem').textContent.length") == 1_000_000


def test_keys_search_and_filters(tmp_path: Path, page: Page):
    problems = [*(problem(number) for number in range(30)), answered(30, "中文 and $x^2$")]
    page.open(url_of(write_page(tmp_path / "report.html", report(), problems)), READY)
    page.press("j")
    page.wait(f"{READY} === 'p1'")
    page.press("k")
    page.wait(f"{READY} === 'p0'")
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.run("search.value = '中文'; search.dispatchEvent(new Event('input'))")
    page.wait(f"{READY} === 'p30'")
    assert page.run("document.getElementById('count').textContent") == "1 of 31 problems"
    assert page.run("document.querySelector('.turn.long .text').textContent") == "中文 and $x^2$"
    page.run("search.value = ''; tag.value = 'cut'; tag.dispatchEvent(new Event('change'))")
    page.wait(f"{READY} === 'p1'")
    assert page.run("document.getElementById('count').textContent") == "15 of 31 problems"


def test_the_curve_and_the_states_of_a_trace(tmp_path: Path, page: Page):
    page.open(url_of(write_page(tmp_path / "report.html", report(), [problem(0)])), READY)
    assert page.run("[...document.querySelectorAll('.piece .state')].map((e) => e.textContent)") == [
        "1 kept",
        "2 kept",
        "3 cut",
        "4 cut",
        "5 added",
    ]
    assert page.run("document.querySelectorAll('.curve circle').length") == 4
    assert page.run("document.querySelector('.piece .gutter').textContent").endswith("p 0/8")
