import pytest

from conf.segmentation import Segmentation
from reasoning.records import Opening
from reasoning.sentence_openers import openings

TRACES = [
    "Ann has 4. Wait, she has 5. Wait a second. So it is 5.",
    "Well, it is 6. So it is 6.\n\n12 is wrong.",
]


def test_openings_are_counted_by_sentence_and_trace():
    found = openings(TRACES, ["Wait", "Hmm"])
    assert [(row.text, row.count, row.traces, row.is_marker) for row in found] == [
        ("So it is", 2, 2, False), ("Ann has 4", 1, 1, False), ("Wait", 2, 1, True), ("Well", 1, 1, False),
        ("Hmm", 0, 0, True),
    ]  # fmt: skip


def test_the_place_is_the_mean_over_its_sentences():
    rows = {row.text: row.place for row in openings(TRACES, ["Wait"])}
    # "Wait" begins at characters 11 and 28 of 54.
    assert rows["Wait"] == pytest.approx((11 + 28) / 2 / 54)
    assert rows["Ann has 4"] == 0


def test_chinese_openings_are_some_characters_long():
    found = openings(["嗯，是七。让我再仔细检查一下结果。"], Segmentation(languages=("chinese",)).markers)
    assert [row.text for row in found if row.count] == ["嗯", "让我再"]
    assert "让我再仔细检" in {row.text for row in openings(["是七。让我再仔细检查一下。"], ["Wait"])}


def test_no_traces_leave_only_the_markers():
    assert openings([], ["Wait"]) == [Opening(text="Wait", is_marker=True, count=0, traces=0, place=None)]
