"""Protocol between the long-thought and the short-thought model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.dialogue import (
    TAGS,
    Closing,
    Dialogue,
    Fault,
    Speaker,
    Turn,
    force_answer,
    parse_turn,
    settled_text,
    turns_of,
)

LEAD = "\nThe answer is \\boxed{"
PIECES = st.sampled_from(
    [*TAGS, "x < 5", "a</b>", "<", ">", "\\boxed{4}", "}", "{", "\n", "Wait, ", "<|endoftext|>", "</think"]
)
GENERATED = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)


def play(texts: list[str], max_rounds: int) -> Dialogue:
    """A dialogue in which the models generate `texts` in turn until it is over."""
    dialogue = Dialogue(max_rounds)
    for text in texts:
        if dialogue.is_over:
            break
        turn = force_answer(LEAD, text) if dialogue.must_answer else parse_turn(dialogue.next_speaker, text)
        dialogue = dialogue.with_turn(turn)
    return dialogue


@pytest.mark.parametrize(
    ("speaker", "generated", "text", "closing", "fault"),
    [
        (Speaker.LONG, "\nx < 5 and y > 2\n</think>", "\nx < 5 and y > 2\n", Closing.THOUGHT, None),
        (Speaker.SHORT, "It is 4. \\boxed{4}</answer>", "It is 4. \\boxed{4}", Closing.ANSWER, None),
        (Speaker.SHORT, "So far 7.</rethink>\n", "So far 7.", Closing.RETHINK, None),
        (Speaker.LONG, "It is 4.", "It is 4.", Closing.THOUGHT, Fault.UNCLOSED),
        (Speaker.SHORT, "\\boxed{4}", "\\boxed{4}", Closing.RETHINK, Fault.UNCLOSED),
        (Speaker.LONG, "</think>", "", Closing.THOUGHT, Fault.EMPTY),
        (Speaker.SHORT, " \n</answer>", " \n", Closing.ANSWER, Fault.EMPTY),
        # Text after the end of a turn is discarded, even if it imitates the other speaker.
        (Speaker.LONG, "a</think><answer>\\boxed{9}</answer>", "a", Closing.THOUGHT, Fault.TRAILING),
        (Speaker.LONG, "a<answer>\\boxed{9}</answer></think>", "a", Closing.THOUGHT, Fault.FOREIGN),
        (Speaker.SHORT, "a</think>b</answer>", "a", Closing.RETHINK, Fault.FOREIGN),
        (Speaker.LONG, "a<think>b</think></think>", "a", Closing.THOUGHT, Fault.FOREIGN),
        (Speaker.SHORT, "a</answer></answer>", "a", Closing.ANSWER, Fault.TRAILING),
        (Speaker.LONG, "a</THINK></think >", "a</THINK></think >", Closing.THOUGHT, Fault.UNCLOSED),
    ],
)
def test_parse_turn(speaker: Speaker, generated: str, text: str, closing: Closing, fault: Fault | None):
    assert parse_turn(speaker, generated) == Turn(speaker, text, closing, fault)


@given(GENERATED, st.sampled_from(Speaker))
def test_settled_text_never_changes_later(generated: str, speaker: Speaker):
    expected = ""
    for end in range(len(generated) + 1):
        assert settled_text(generated[:end]).startswith(expected)
        expected = settled_text(generated[:end])
    assert parse_turn(speaker, generated).text.startswith(expected)
    assert len(parse_turn(speaker, generated).text) - len(expected) < len("</rethink>")


def test_dialogue_by_hand():
    dialogue = play(["2+2</think>", "I need 3+3.</rethink>", "6</think>", "\\boxed{6}</answer>", "more</think>"], 4)
    assert str(dialogue) == (
        "<think>2+2</think><answer>I need 3+3.</rethink><think>6</think><answer>\\boxed{6}</answer>"
    )
    assert (dialogue.answer, dialogue.hit_cap, dialogue.is_well_formed) == ("6", False, True)


def test_short_must_answer_after_max_rounds():
    dialogue = play(["a</think>", "?</rethink>", "b</think>", "??</rethink>"], 2)
    assert dialogue.must_answer
    assert dialogue.next_speaker is Speaker.SHORT
    dialogue = dialogue.with_turn(force_answer(LEAD, "6}. I am sure.</rethink>"))
    assert str(dialogue).endswith("<answer>??</rethink><answer>\nThe answer is \\boxed{6}</answer>")
    assert (dialogue.answer, dialogue.hit_cap, dialogue.is_well_formed) == ("6", True, False)


def test_missing_answer_is_none():
    for generated in ("6", "</answer>6}", ""):
        assert Dialogue(1).with_turn(force_answer(LEAD, generated)).answer is None
    assert play(["a</think>", "six</answer>"], 4).answer is None
    assert play(["\\boxed{4}</think>"], 4).answer is None  # not over, and Long does not answer


@given(st.lists(GENERATED, max_size=12), st.integers(1, 4))
def test_every_dialogue_ends_and_its_transcript_parses_back(generated: list[str], max_rounds: int):
    dialogue = play([*generated, *["<answer>"] * 9], max_rounds)
    assert dialogue.is_over
    assert len(dialogue.turns) <= 2 * max_rounds + 1
    expected = [(turn.speaker, turn.text, turn.closing) for turn in dialogue.turns]
    assert [(turn.speaker, turn.text, turn.closing) for turn in turns_of(str(dialogue))] == expected
    speakers = [turn.speaker for turn in dialogue.turns if not turn.was_forced]
    assert speakers == [(Speaker.LONG, Speaker.SHORT)[index % 2] for index in range(len(speakers))]


@pytest.mark.parametrize(
    "text", ["<think>a", "a<think>b</think>", "<think>a</answer>", "<think>a<answer>b</answer></think>"]
)
def test_invalid_transcript_is_rejected(text: str):
    with pytest.raises(ValueError, match="no turn begins at"):
        turns_of(text)
