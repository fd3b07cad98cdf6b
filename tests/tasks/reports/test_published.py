"""A paper's figures beside those of a report that can be checked by hand."""

from conf.dto import Dto
from conf.published import Headline, Published
from tasks.reports.published import published_tables
from tests.tasks.reports.reports import MAIN, OTHER, report

PAPER = Published(
    source="arXiv 1",
    figures={"base": {MAIN: (50.0, 20.0)}, "method": {MAIN: (60.0,), OTHER: (70.0, 9.0), "third": (1.0, 2.0)}},
    headlines=(
        Headline(what="tokens ÷ base", paper="about 0.5", figure="tokens_ratio"),
        Headline(what="FLOPs", paper="−47 %", figure="attention_flops_right", form="{:+.0%}"),
        Headline(what="said only", paper="many"),
    ),
    settings={"model": "tiny", "sampling.samples": 8, "llm": "none"},
    notes=("One more.",),
)


def test_the_papers_figures_beside_ours():
    figures, headlines, differences = published_tables(report(), Dto(), PAPER)
    assert figures["title"] == "arXiv 1, and this run: accuracy % (mean tokens)"
    # base: problem a is right in one seed of two, b never, c always; dto is right on a in one, on b and c
    assert [(row["model"], row["benchmark"], row["paper"]) for row in figures["rows"]] == [
        ("base", MAIN, "50.0 (20)"),
        ("dto", MAIN, "60.0"),
        ("dto", OTHER, "70.0 (9)"),
        ("dto", "third", "1.0 (2)"),
    ]
    ours = [row["this run"] for row in figures["rows"]]
    assert ours[0].startswith("50.0 [")
    assert ours[0].endswith("] (27)")  # a (10 + 30) / 2, b 20, c 40
    assert ours[1].startswith("83.3 [")
    assert ours[3] == "–"
    assert headlines["rows"][0]["this run"] == "0.44"  # (5 + 10 + 20) / (20 + 20 + 40)
    assert headlines["rows"][2]["this run"] == "–"
    assert differences["rows"] == [
        {"what": "sampling.samples", "paper": "8", "this run": "4"},
        {"what": "One more.", "paper": "", "this run": ""},
    ]


def test_empty_tables_are_left_out():
    assert published_tables(report(), Dto(), Published(source="x", settings={"model": "tiny"})) == []
