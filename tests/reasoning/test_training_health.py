"""Collapse and best step of an RL round; dialogue rewards."""

import pytest

from conf.long_short import CollapseLimits
from reasoning.records import EvaluatedDialogue, ModelCall, Verdict
from reasoning.rewards import DialogueOutcome, group_rewards, reward_gain
from reasoning.training_health import StepMetrics, collapse, is_best


def history(*steps: tuple[float, float]) -> list[StepMetrics]:
    """Steps given as (tokens, reward)."""
    return [
        StepMetrics(step=number, tokens=tokens, quality_reward=reward) for number, (tokens, reward) in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(100, 1.5)], None),
        ([(100, 1.5), *[(40, 1.4)] * 6], None),
        ([(100, 1.5), *[(20, 1.4)] * 5], "100 tokens to 20"),
        ([(100, 1.5), (20, 1.4)], None),  # a single step is no collapse
        ([(100, 1.5), *[(210, 1.4)] * 5], "100 tokens to 210"),
        ([(100, 1.5), *[(100, 0.7)] * 5], "1.50 to 0.70"),
    ],
)
def test_collapse(steps: list[tuple[float, float]], words: str | None):
    found = collapse(history(*steps), CollapseLimits())
    assert found is None if words is None else found is not None and words in found


def test_best_step_uses_smoothed_rewards():
    assert is_best(history((1, 1)))
    assert is_best(history((1, 1), (1, 2)))
    assert not is_best(history((1, 2), (1, 1)))
    # The last step is the best, but its mean with the steps before it is not.
    assert not is_best(history((1, 2), (1, 1), (1, 1), (1, 1), (1, 2.5)))


def test_group_rewards_by_hand():
    found = group_rewards(
        [DialogueOutcome(10, True, True), DialogueOutcome(30, False, True), DialogueOutcome(20, True, False)]
    )
    assert [tuple(one) for one in found] == [(1.0, 1.0, 0.5), (0.0, 1.0, -0.5), (1.0, 0.0, 0.0)]


def dialogue(problem: str, tokens: int, is_right: bool) -> EvaluatedDialogue:
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


def test_reward_gain_by_hand():
    # Problem a: both right, 10 tokens against 20: 2.5 against 1.5. Problem b: right and long against wrong and short:
    # 1.5 against 1.
    new = [dialogue("a", 10, True), dialogue("b", 30, True)]
    old = [dialogue("a", 20, True), dialogue("b", 10, False)]
    more, (low, high) = reward_gain(new, old)
    assert more == pytest.approx((1.0 + 0.5) / 2)
    assert low < more < high
    assert reward_gain(new, new)[0] == 0


def test_failed_dialogues_are_left_out():
    new = [dialogue("a", 10, True), dialogue("b", 30, True)]
    old = [dialogue("a", 20, True), dialogue("b", 10, False)]
    lost = dialogue("a", 0, False).model_copy(update={"verdict": Verdict.NO_COMPLETION})
    assert reward_gain([*new, lost], old) == reward_gain(new, old)
    gone = [dialogue("c", 10, True)], [lost.model_copy(update={"problem_id": "c"})]
    assert reward_gain([*new, *gone[0]], [*old, *gone[1]]) == reward_gain(new, old)
