"""Important thoughts, and cold-start dialogues built from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.long_short import Importance
from reasoning.cold_start import as_dialogue, conclusion
from reasoning.dialogue import Closing, Dialogue, Speaker, turns_of
from reasoning.rewards import length_rewards
from reasoning.thoughts import are_long, importance

# The second thought repeats, the third lowers the value, the fourth raises it to 1.
VALUES, LENGTHS = [0.2, 0.6, 0.6, 0.4, 1.0], [40, 20, 20, 20]


def test_joint_metric_by_hand():
    # 0.4 - 0.25·0.4; 0 - 0.25·0.2 - 0.25; -0.2 - 0.05 - 0.25; 0.6 - 0.05
    assert importance(VALUES, LENGTHS, Importance()) == pytest.approx([0.3, -0.3, -0.5, 0.55])
    assert are_long([0.3, -0.3, -0.5, 0.55]) == [True, False, False, True]
    assert importance(VALUES, LENGTHS, Importance(form="level")) == pytest.approx([0.5, 0.3, 0.1, 0.95])
    assert importance(VALUES, LENGTHS, Importance(length_weight=0, decay=0)) == pytest.approx([0.4, 0, -0.2, 0.6])


def test_important_thoughts_need_a_positive_score():
    assert are_long([-0.1, -0.3, -0.5]) == [False] * 3
    assert are_long([0.4]) == [False]
    assert are_long([0.4, 0.4]) == [False, False]


THOUGHTS = (
    "Start with 4. 4 + 3 is 7. That makes 7.\n",
    "Wait, 4 + 3 is 7. Yes, 7.\n",
    "Hmm. 7 it is.\n",
    "Now 7 - 1 is 6. It is 6.\n",
)
REPLY = "\nThe answer is \\boxed{6}."


@pytest.mark.parametrize(
    ("important", "transcript"),
    [
        (
            (True, False, False, True),
            "<think>\nStart with 4. 4 + 3 is 7. That makes 7.\n</think><answer>\n7 it is.\n</rethink>"
            "<think>\nNow 7 - 1 is 6. It is 6.\n</think><answer>\nThe answer is \\boxed{6}.\n</answer>",
        ),
        (
            (True, True, True, False),
            "<think>\nStart with 4. 4 + 3 is 7. That makes 7.\nWait, 4 + 3 is 7. Yes, 7.\nHmm. 7 it is.\n</think>"
            "<answer>\nIt is 6.\nThe answer is \\boxed{6}.\n</answer>",
        ),
        # Long opens with the first thought even if it is unimportant; important thoughts after it join its turn.
        (
            (False, True, False, False),
            "<think>\nStart with 4. 4 + 3 is 7. That makes 7.\nWait, 4 + 3 is 7. Yes, 7.\n</think>"
            "<answer>\nIt is 6.\nThe answer is \\boxed{6}.\n</answer>",
        ),
        (
            (False,) * 4,
            "<think>\nStart with 4. 4 + 3 is 7. That makes 7.\n</think>"
            "<answer>\nIt is 6.\nThe answer is \\boxed{6}.\n</answer>",
        ),
    ],
)
def test_trace_as_dialogue(important: tuple[bool, ...], transcript: str):
    dialogue = as_dialogue(THOUGHTS, important, REPLY, max_rounds=4)
    assert str(dialogue) == transcript
    assert dialogue
    assert (dialogue.answer, dialogue.is_well_formed) == ("6", True)


def test_too_many_rounds_or_a_tag_give_no_dialogue():
    important = (True, False, True, False)
    assert as_dialogue(THOUGHTS, important, REPLY, max_rounds=2)
    assert as_dialogue(THOUGHTS, important, REPLY, max_rounds=1) is None
    assert as_dialogue(("a </answer> b",), (True,), REPLY, 4) is None
    assert as_dialogue(("a",), (True,), "<think>", 4) is None


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_important_thoughts_appear_once_and_in_order(important: list[bool]):
    thoughts = [f"This is {n}.\n" for n in range(len(important))]
    dialogue = as_dialogue(thoughts, important, REPLY, max_rounds=20)
    assert dialogue
    assert dialogue.turns[-1].closing is Closing.ANSWER
    played = Dialogue(20)
    for turn in turns_of(str(dialogue)):
        assert played.next_speaker is turn.speaker  # turns alternate as in the protocol
        played = played.with_turn(turn)
    long_text = "".join(turn.text.removeprefix("\n") for turn in played.turns if turn.speaker is Speaker.LONG)
    assert long_text == "".join(t for n, t in enumerate(thoughts) if n == 0 or important[n])


def test_conclusion_is_the_last_sentence():
    assert conclusion("Wait. 3 + 4 is 7. So it is 7.\n") == "So it is 7."
    assert conclusion("no stop") == "no stop"
    assert conclusion(" \n") == ""


def test_length_rewards_by_hand():
    assert length_rewards([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert length_rewards([10, 30, 30], [False, False, True]) == [0.0, -0.5, -0.5]
    assert length_rewards([7, 7], [True, False]) == [0.0, 0.0]
