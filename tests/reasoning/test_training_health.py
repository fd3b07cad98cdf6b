"""When a round of reinforcement has collapsed, and when it was at its best; rewards by hand."""

import pytest

from conf.long_short import CollapseLimits
from reasoning.records import EvaluatedDialogue, ModelCall, Verdict
from reasoning.rewards import DialogueOutcome, group_rewards, reward_gain
from reasoning.training_health import StepFigures, collapse, is_best


def history(*steps: tuple[float, float]) -> list[StepFigures]:
    """Steps by their tokens and rewards."""
    return [
        StepFigures(step=number, tokens=tokens, quality_reward=reward) for number, (tokens, reward) in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(100, 1.5)], None),
        ([(100, 1.5), *[(40, 1.4)] * 6], None),
        ([(100, 1.5), *[(20, 1.4)] * 5], "100 tokens to 20"),
        ([(100, 1.5), (20, 1.4)], None),  # one step of few dialogues is no collapse
        ([(100, 1.5), *[(210, 1.4)] * 5], "100 tokens to 210"),
        ([(100, 1.5), *[(100, 0.7)] * 5], "1.50 to 0.70"),
    ],
)
def test_collapse(steps: list[tuple[float, float]], words: str | None):
    found = collapse(history(*steps), CollapseLimits())
    assert found is None if words is None else found is not None and words in found


def test_the_best_step_is_the_best_of_smoothed_ones():
    assert is_best(history((1, 1)))
    assert is_best(history((1, 1), (1, 2)))
    assert not is_best(history((1, 2), (1, 1)))
    # A step that is better than all, after bad ones: with them it is not.
    assert not is_best(history((1, 2), (1, 1), (1, 1), (1, 1), (1, 2.5)))


def test_rewards_of_a_group_by_hand():
    found = group_rewards(
        [DialogueOutcome(10, True, True), DialogueOutcome(30, False, True), DialogueOutcome(20, True, False)]
    )
    assert [tuple(one) for one in found] == [(1.0, 1.0, 0.5), (0.0, 1.0, -0.5), (1.0, 0.0, 0.0)]


def said(problem: str, tokens: int, is_right: bool) -> EvaluatedDialogue:
    return EvaluatedDialogue(
        problem_id=problem,
        sample=0,
        transcript="",
        long_calls=(ModelCall(prompt_tokens=1, tokens=tokens),),
        short_calls=(),
        hit_cap=False,
        is_well_formed=True,
        verdict=Verdict.RIGHT if is_right else Verdict.WRONG,
    )


def test_two_couples_are_rewarded_side_by_side():
    # Problem a: both right, 10 tokens against 20: 2.5 against 1.5. Problem b: right and long against wrong and short:
    # 1.5 against 1.
    new = [said("a", 10, True), said("b", 30, True)]
    old = [said("a", 20, True), said("b", 10, False)]
    more, (low, high) = reward_gain(new, old)
    assert more == pytest.approx((1.0 + 0.5) / 2)
    assert low < more < high
    assert reward_gain(new, new)[0] == 0


def test_a_dialogue_that_was_not_held_says_nothing():
    new = [said("a", 10, True), said("b", 30, True)]
    old = [said("a", 20, True), said("b", 10, False)]
    lost = said("a", 0, False).model_copy(update={"verdict": Verdict.NO_COMPLETION})
    assert reward_gain([*new, lost], old) == reward_gain(new, old)
    gone = [said("c", 10, True)], [lost.model_copy(update={"problem_id": "c"})]
    assert reward_gain([*new, *gone[0]], [*old, *gone[1]]) == reward_gain(new, old)
