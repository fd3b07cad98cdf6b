import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.settings import MARKERS as MARKERS_OF
from conf.settings import Segmentation
from reasoning.segment import segment_text, token_ends

DEFAULT = Segmentation()
MARKERS = DEFAULT.markers + MARKERS_OF["chinese"]
pieces = st.sampled_from(
    [
        *MARKERS,
        "wait",
        "Waiting",
        ". ",
        "? ",
        ".\n\n",
        "\n",
        " ",
        '." ',
        "12+7=19",
        "é",
        "等等",
        "。",
        "。”",
        "因此",
        "x",
    ]
)
texts = st.one_of(st.text(), st.lists(pieces).map("".join))


def cut(text: str, min_chars: int = 0) -> list[str]:
    return segment_text(text, MARKERS, min_chars)


@given(texts, st.integers(0, 40))
def test_joined_segments_are_the_text(text: str, min_chars: int):
    segments = cut(text, min_chars)
    assert "".join(segments) == text
    assert all(segments)
    assert all(len(segment) >= min_chars for segment in segments[:-1])


@given(texts)
def test_every_segment_but_the_first_begins_with_a_marker(text: str):
    assert all(segment.lstrip().startswith(MARKERS) for segment in cut(text)[1:])


def test_spaces_go_with_the_marker_and_line_breaks_stay_behind():
    text = "It is 4. Wait, no.\n\nHmm, 5? Alternatively 6."
    assert cut(text) == ["It is 4.", " Wait, no.\n\n", "Hmm, 5?", " Alternatively 6."]


def test_a_marker_inside_a_sentence_or_word_starts_nothing():
    assert len(cut("I Wait here. Waiting is dull, Hmm. wait")) == 1


def test_a_short_segment_is_joined_to_the_next():
    assert cut("Hmm. Wait. So it is 4, then. Wait, 5.", 12) == ["Hmm. Wait. So it is 4, then.", " Wait, 5."]


def test_chinese_is_cut_without_spaces():
    text = "3加4等于7。等等，再算一次。“是8。”不对，是7。\n因此答案是7。他说不对。"
    assert segment_text(text, MARKERS_OF["chinese"], 0) == [
        "3加4等于7。", "等等，再算一次。“是8。”", "不对，是7。\n", "因此答案是7。他说不对。",
    ]  # fmt: skip


def test_german_is_cut_at_whole_words():
    text = "Es sind 4. Moment, ich rechne nach. Momentan sind es 5. Daher: 5."
    assert segment_text(text, MARKERS_OF["german"], 0) == [
        "Es sind 4.", " Moment, ich rechne nach. Momentan sind es 5.", " Daher: 5.",
    ]  # fmt: skip


@given(st.lists(st.text(min_size=0, max_size=4), max_size=30), st.data())
def test_token_spans_cover_the_tokens_in_order(tokens: list[str], data: st.DataObject):
    text = "".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    segments = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    ends = token_ends(segments, tokens)
    assert ends == sorted(ends)
    assert len("".join(tokens[: ends[-1]])) == len(text)
    for end, char_end in zip(ends, [*cuts, len(text)], strict=True):
        # A token that straddles a cut belongs to the segment it starts in.
        assert len("".join(tokens[:end])) >= char_end
        assert end == 0 or len("".join(tokens[: end - 1])) < char_end or not any(tokens[:end])


def test_a_token_over_a_cut_belongs_to_where_it_starts():
    assert token_ends(["ab.\n", "Wait"], ["a", "b.", "\nW", "ait"]) == [3, 4]


@pytest.mark.parametrize(
    "name", ["traces_mip_gsm8k_4models", "traces_r1_1p5b_math_3samples", "traces_thought_anchors_labeled"]
)
def test_real_traces_are_cut_without_loss(real_data: Path, name: str):
    lines = (real_data / f"{name}.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        trace = json.loads(line)["trace"]
        assert "".join(segment_text(trace, MARKERS, DEFAULT.min_chars)) == trace
