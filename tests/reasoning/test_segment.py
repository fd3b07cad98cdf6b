import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.segmentation import MARKERS as MARKERS_OF
from conf.segmentation import Segmentation
from conf.tiny_model import Teacher
from reasoning.segment import segment_text, sentence_starts, token_ends
from reasoning.stories import OverThinker, Split, draw_stories
from reasoning.thinking import thinking_of, thought_of

DEFAULT = Segmentation()
ALL = tuple(dict.fromkeys(marker for markers in MARKERS_OF.values() for marker in markers))
pieces = st.sampled_from(
    [
        *ALL,
        "wait",
        "Waiting",
        "No, ",
        "But ",
        ". ",
        "? ",
        ".\n\n",
        "\n",
        "\r\n",
        " ",
        "\u00a0",
        '." ',
        ".$ ",
        "\\) ",
        "**",
        "- ",
        "1. ",
        "# ",
        "12+7=19",
        "é",
        "。",
        "。”",
        "，",
        "部",
        "x",
        "\ud83d",
        "word " * 30,
    ]
)
anything = st.text(st.characters(codec=None, exclude_categories=()))
texts = st.one_of(anything, st.lists(pieces).map("".join))
TRACE_FILES = ["traces_mip_gsm8k_4models", "traces_r1_1p5b_math_3samples", "traces_thought_anchors_labeled"]


def cut(text: str, min_chars: int = 0, max_chars: int = 2000, language: Any = "english") -> list[str]:
    return segment_text(text, MARKERS_OF[language], min_chars, max_chars)


@settings(deadline=None)
@given(texts, st.integers(0, 25), st.integers(100, 400))
def test_joined_segments_are_the_text(text: str, min_chars: int, max_chars: int):
    segments = segment_text(text, ALL, min_chars, max_chars)
    assert "".join(segments) == text
    assert all(segments)
    assert all(len(segment) >= min_chars for segment in segments[:-1])
    assert all(len(segment) <= max_chars or len(max(segment.split(), key=len)) > 25 for segment in segments)


@settings(deadline=None)
@given(texts)
def test_every_later_segment_begins_with_a_marker(text: str):
    words = tuple({marker.casefold()[0] for marker in ALL} | {"n", "o", "b"})  # "No, wait", "Or maybe I", "But however"
    for segment in segment_text(text, ALL, 0, 10**9)[1:]:
        opened = segment.lstrip().lstrip("*_`\"'“‘„«「『（([【-+•‣◦▪·–—># \t")
        assert opened.casefold().startswith(words) or opened[:1].isalnum()


def test_spaces_belong_to_the_marker_and_line_breaks_to_the_segment_before():
    text = "It is 4. Wait, no.\n\nHmm, 5? Alternatively 6."
    assert cut(text) == ["It is 4.", " Wait, no.\n\n", "Hmm, 5?", " Alternatively 6."]


def test_opening_marks_belong_to_the_marker_and_closing_marks_to_the_segment_before():
    assert cut("So \\(x=4.\\) Wait, no.") == ["So \\(x=4.\\)", " Wait, no."]
    assert cut('"It is 4." "Wait, is it?"') == ['"It is 4."', ' "Wait, is it?"']
    assert cut("- It is 4\r\n- **Wait**, no") == ["- It is 4\r\n", "- **Wait**, no"]
    assert cut("It is 4.\n\n### 2. Double-check\nYes.") == ["It is 4.\n\n", "### 2. Double-check\nYes."]


def test_marker_inside_a_sentence_or_word_starts_no_segment():
    assert len(cut("I Wait here. Waiting is dull, Hmm. A wait, actually.")) == 1


def test_short_segment_is_merged_with_the_next():
    assert cut("Hmm. Wait. So it is 4, then. Wait, 5.", 12) == ["Hmm. Wait. So it is 4, then.", " Wait, 5."]


def test_chinese_is_split_without_spaces():
    text = "3加4等于7。等等，再算一次。“是8。”不对，是7。\n因此答案是7。他说不对。"
    assert cut(text, language="chinese") == [
        "3加4等于7。",
        "等等，再算一次。“是8。”",
        "不对，是7。\n",
        "因此答案是7。他说不对。",
    ]


def test_german_is_split_at_whole_words():
    text = "Es sind 4. Moment, ich rechne nach. Momentan sind es 5. Daher: 5."
    assert cut(text, language="german") == [
        "Es sind 4.",
        " Moment, ich rechne nach. Momentan sind es 5.",
        " Daher: 5.",
    ]


CUT = {
    "english": [
        "But actually, 5.",
        "Oh wait, 5.",
        "No wait, 5.",
        "No, wait: 5.",
        "Hmmm, no.",
        "hmm, no.",
        "let me double-check.",
        "Let me recheck this.",
        "Let me re-check this.",
        "Let’s double check.",
        "Let me just quickly verify.",
        "We should verify.",
        "Maybe I made a mistake.",
        "That doesn't seem right.",
        "Or maybe I misread.",
        "Wait!",
        "Wait—no.",
        "Wait a minute.",
        "Wait the sum is 5.",
        "*Wait*, no.",
        "_Alternatively_, no.",
        "(Wait, is it?)",
        '"Wait, is it?"',
        "However, 5.",
        "But however we count, 5.",
        "So actually 5.",
    ],
    "chinese": [
        "等等，再算。",
        "但题目要求正数。",
        "然而题目要求5。",
        "另外，还要检查。",
        "因此，答案是7。",
        "不过，直线不过B。",
        "其实，这是对的。",
        "其实我们可以直接算。",
        "另一种方法：用面积。",
        "再试试别的。",
        "嗯，不对。",
        "不，等等，是61。",
        "或者，用另一种方法。",
        "**等等**，不对。",
    ],
    "german": [
        "Moment, 5.",
        "Moment mal, 5.",
        "Moment! 5.",
        "moment, 5.",
        "Halt, 5.",
        "Halt! 5.",
        "Warte, 5.",
        "Aber warte, 5.",
        "Nein, Moment, 5.",
        "Allerdings sind es 5.",
    ],
}
WHOLE = {
    "english": [
        "Wait times are long.",
        "Wait staff earn 5.",
        "Wait for 5 minutes.",
        "Wait 5 more minutes.",
        "Wait until noon.",
        "Waiter!",
        "Hold on to it.",
        "However many there are, 4.",
        "Actuality is 5.",
        "I said wait, however.",
        "Use primes, e.g. however many.",
        "It is so, i.e. therefore 5.",
        "The function $f$ actually rises.",
    ],
    "chinese": [
        "另外两个数是5。",
        "因此时速为3。",
        "不对等的关系。",
        "不对应的边。",
        "不过点B。",
        "不过原点的圆。",
        "其实质是4。",
        "其实验数据为4。",
        "其实数解为4。",
        "另一种颜色的球有3个。",
        "再试图分解。",
        "但丁是诗人。",
        "但凡偶数。",
        "等等力是站名。",
        "甲或者乙，但不是丙。",
        "梨、苹果等等。",
        "或者x=5。",
        "所以$x=4$ 或者 $x=5$。",
    ],
    "german": [
        "Moment ist Kraft mal Arm.",
        "Momentan 5.",
        "Moment und Impuls.",
        "Halt des Zuges um 5.",
        "Haltestelle 5.",
        "Warte auf ihn.",
        "Wartezeit 5.",
        "Alternative Wege.",
        "Im Moment, 5.",
    ],
}
BEHIND = {"english": "It is 4. ", "chinese": "答案是4。", "german": "Es sind 4. "}


@pytest.mark.parametrize("language", CUT)
def test_markers_start_a_segment(language: Any):
    for cue in CUT[language]:
        blank = "" if language == "chinese" else " "
        assert cut(BEHIND[language] + cue, language=language) == [BEHIND[language].strip(), blank + cue], cue
        assert len(cut(f"{BEHIND[language].strip()}\n- {cue}", language=language)) == 2, cue


@pytest.mark.parametrize("language", WHOLE)
def test_other_words_start_no_segment(language: Any):
    for text in WHOLE[language]:
        assert len(cut(BEHIND[language] + text, language=language)) == 1, text


def test_public_cases(cases: Callable[[str], list[dict[str, Any]]]):
    for case in cases("segments.jsonl"):
        assert len(cut(case["text"], language=case["language"])) == case["segments"], case


def test_long_segment_is_split_at_the_best_boundary():
    # Between 25 and 100 characters: the last paragraph, else line, else sentence, else word.
    paragraphs = f"{'a' * 30}\n\n{'b' * 30}. B\n\n{'c' * 30}\n{'d' * 30}"
    assert cut(paragraphs, max_chars=100) == [f"{'a' * 30}\n\n{'b' * 30}. B\n\n", f"{'c' * 30}\n{'d' * 30}"]
    assert cut(f"{'a' * 60}\n{'b' * 20}. {'c' * 30}", max_chars=100) == [f"{'a' * 60}\n", f"{'b' * 20}. {'c' * 30}"]
    assert cut(f"{'a' * 60}. {'b' * 15} {'c' * 30}", max_chars=100) == [f"{'a' * 60}.", f" {'b' * 15} {'c' * 30}"]
    assert cut(f"{'a' * 60} {'b' * 50}", max_chars=100) == ["a" * 60, f" {'b' * 50}"]
    assert cut("a" * 300 + " b", max_chars=100) == ["a" * 300, " b"]


def test_adversarial_texts_take_linear_time():
    for piece in [
        "a",
        "\n",
        "\r\n",
        "*",
        ". ",
        ".",
        "$ ",
        "Wait. ",
        "\nBut ",
        "\nLet me just ",
        "1. ",
        "。等等",
        "\n ",
        "- ",
    ]:
        text = "\n" + piece * (300_000 // len(piece))
        started = time.process_time()
        assert "".join(segment_text(text, ALL, 0, 2000)) == text
        assert time.process_time() - started < 10  # half a second where it is linear, minutes where it is not


def test_tiny_model_segments_are_unchanged():
    # Every cue of the bundled teacher opens a line of its own, and no segment comes near the longest.
    chances, rng = Teacher(), Random(0)
    for story in draw_stories(Split.TRAIN, 0, 300, tuple(range(1, 9))):
        text = OverThinker(chances, rng).think(story).text
        expected: list[str] = []
        for line in text.splitlines(keepends=True):
            opens = line.startswith(("Wait", "Alternatively", "Hmm", "Therefore"))
            expected[len(expected) - (not opens and bool(expected)) :] = (
                [line] if opens or not expected else [expected[-1] + line]
            )
        assert cut(text) == expected


@settings(deadline=None)
@given(texts)
def test_sentence_starts_are_ordered_and_within_the_text(text: str):
    starts = list(sentence_starts(text))
    assert starts == sorted(starts)
    assert all(0 <= cut <= word < len(text) for cut, word in starts)


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


def test_token_across_a_cut_belongs_to_the_segment_it_starts_in():
    assert token_ends(["ab.\n", "Wait"], ["a", "b.", "\nW", "ait"]) == [3, 4]


@pytest.mark.parametrize("name", TRACE_FILES)
def test_real_traces_are_split_losslessly_into_bounded_segments(real_data: Path, name: str):
    lines = (real_data / f"{name}.jsonl").read_text().splitlines()
    whole = long = 0
    for line in lines:
        thinking = thinking_of(thought_of(json.loads(line)["trace"]))
        segments = cut(thinking, DEFAULT.min_chars)
        assert "".join(segments) == thinking
        whole += len(thinking)
        long += sum(len(segment) for segment in segments if len(segment) > 2000)
    assert whole
    assert long <= 0.1 * whole
