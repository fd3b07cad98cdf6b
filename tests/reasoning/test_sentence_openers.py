import pytest

from conf.segmentation import Segmentation
from reasoning.records import SentenceOpener
from reasoning.sentence_openers import sentence_openers

TRACES = [
    "Ann has 4. Wait, she has 5. Wait a second. So it is 5.",
    "Well, it is 6. So it is 6.\n\n12 is wrong.",
]


def test_openers_are_counted_by_sentence_and_trace():
    found = sentence_openers(TRACES, ["Wait", "Hmm"])
    assert [(row.text, row.count, row.traces, row.is_marker) for row in found] == [
        ("So it is", 2, 2, False),
        ("Ann has 4", 1, 1, False),
        ("Wait", 2, 1, True),
        ("Well", 1, 1, False),
        ("Hmm", 0, 0, True),
    ]


def test_position_is_the_mean_over_sentences():
    rows = {row.text: row.position for row in sentence_openers(TRACES, ["Wait"])}
    # "Wait" begins at characters 11 and 28 of 54.
    assert rows["Wait"] == pytest.approx((11 + 28) / 2 / 54)
    assert rows["Ann has 4"] == 0


def test_chinese_openers_have_a_few_characters():
    found = sentence_openers(["嗯，是七。让我再仔细检查一下结果。"], Segmentation(languages=("chinese",)).markers)
    assert [row.text for row in found if row.count] == ["嗯", "让我再"]
    assert "让我再仔细检" in {row.text for row in sentence_openers(["是七。让我再仔细检查一下。"], ["Wait"])}


def test_without_traces_only_markers_are_listed():
    assert sentence_openers([], ["Wait"]) == [
        SentenceOpener(text="Wait", is_marker=True, count=0, traces=0, position=None)
    ]
