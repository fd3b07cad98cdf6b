"""The protocol between a long-thought and a short-thought model."""

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
SAID = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)


def play(said: list[str], max_rounds: int) -> Dialogue:
    """A dialogue in which the models write `said`, one after another, as long as it lasts."""
    dialogue = Dialogue(max_rounds)
    for text in said:
        if dialogue.is_over:
            break
        turn = force_answer(LEAD, text) if dialogue.must_answer else parse_turn(dialogue.next_speaker, text)
        dialogue = dialogue.with_turn(turn)
    return dialogue


@pytest.mark.parametrize(
    ("speaker", "said", "text", "closing", "fault"),
    [
        (Speaker.LONG, "\nx < 5 and y > 2\n</think>", "\nx < 5 and y > 2\n", Closing.THOUGHT, None),
        (Speaker.SHORT, "It is 4. \\boxed{4}</answer>", "It is 4. \\boxed{4}", Closing.ANSWER, None),
        (Speaker.SHORT, "So far 7.</rethink>\n", "So far 7.", Closing.RETHINK, None),
        (Speaker.LONG, "It is 4.", "It is 4.", Closing.THOUGHT, Fault.UNCLOSED),
        (Speaker.SHORT, "\\boxed{4}", "\\boxed{4}", Closing.RETHINK, Fault.UNCLOSED),
        (Speaker.LONG, "</think>", "", Closing.THOUGHT, Fault.EMPTY),
        (Speaker.SHORT, " \n</answer>", " \n", Closing.ANSWER, Fault.EMPTY),
        # What stands after a turn's end is not heard, whoever it pretends to be.
        (Speaker.LONG, "a</think><answer>\\boxed{9}</answer>", "a", Closing.THOUGHT, Fault.TRAILING),
        (Speaker.LONG, "a<answer>\\boxed{9}</answer></think>", "a", Closing.THOUGHT, Fault.FOREIGN),
        (Speaker.SHORT, "a</think>b</answer>", "a", Closing.RETHINK, Fault.FOREIGN),
        (Speaker.LONG, "a<think>b</think></think>", "a", Closing.THOUGHT, Fault.FOREIGN),
        (Speaker.SHORT, "a</answer></answer>", "a", Closing.ANSWER, Fault.TRAILING),
        (Speaker.LONG, "a</THINK></think >", "a</THINK></think >", Closing.THOUGHT, Fault.UNCLOSED),
    ],
)
def test_what_is_heard(speaker: Speaker, said: str, text: str, closing: Closing, fault: Fault | None):
    assert parse_turn(speaker, said) == Turn(speaker, text, closing, fault)


@given(SAID, st.sampled_from(Speaker))
def test_what_is_surely_heard_is_never_taken_back(said: str, speaker: Speaker):
    told = ""
    for end in range(len(said) + 1):
        assert settled_text(said[:end]).startswith(told)
        told = settled_text(said[:end])
    assert parse_turn(speaker, said).text.startswith(told)
    assert len(parse_turn(speaker, said).text) - len(told) < len("</rethink>")


def test_a_dialogue_by_hand():
    dialogue = play(["2+2</think>", "I need 3+3.</rethink>", "6</think>", "\\boxed{6}</answer>", "more</think>"], 4)
    assert str(dialogue) == (
        "<think>2+2</think><answer>I need 3+3.</rethink><think>6</think><answer>\\boxed{6}</answer>"
    )
    assert (dialogue.answer, dialogue.hit_cap, dialogue.is_well_formed) == ("6", False, True)


def test_short_is_made_to_answer_when_it_has_asked_often_enough():
    dialogue = play(["a</think>", "?</rethink>", "b</think>", "??</rethink>"], 2)
    assert dialogue.must_answer
    assert dialogue.next_speaker is Speaker.SHORT
    dialogue = dialogue.with_turn(force_answer(LEAD, "6}. I am sure.</rethink>"))
    assert str(dialogue).endswith("<answer>??</rethink><answer>\nThe answer is \\boxed{6}</answer>")
    assert (dialogue.answer, dialogue.hit_cap, dialogue.is_well_formed) == ("6", True, False)


def test_an_answer_that_is_not_given_is_none():
    for said in ("6", "</answer>6}", ""):
        assert Dialogue(1).with_turn(force_answer(LEAD, said)).answer is None
    assert play(["a</think>", "six</answer>"], 4).answer is None
    assert play(["\\boxed{4}</think>"], 4).answer is None  # not over, and Long does not answer


@given(st.lists(SAID, max_size=12), st.integers(1, 4))
def test_whatever_is_said_a_dialogue_ends_and_reads_as_it_was_written(said: list[str], max_rounds: int):
    dialogue = play([*said, *["<answer>"] * 9], max_rounds)
    assert dialogue.is_over
    assert len(dialogue.turns) <= 2 * max_rounds + 1
    told = [(turn.speaker, turn.text, turn.closing) for turn in dialogue.turns]
    assert [(turn.speaker, turn.text, turn.closing) for turn in turns_of(str(dialogue))] == told
    speakers = [turn.speaker for turn in dialogue.turns if not turn.was_forced]
    assert speakers == [(Speaker.LONG, Speaker.SHORT)[index % 2] for index in range(len(speakers))]


@pytest.mark.parametrize(
    "text", ["<think>a", "a<think>b</think>", "<think>a</answer>", "<think>a<answer>b</answer></think>"]
)
def test_what_is_no_dialogue_is_refused(text: str):
    with pytest.raises(ValueError, match="no turn begins at"):
        turns_of(text)
