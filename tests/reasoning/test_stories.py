import random

from hypothesis import given, settings
from hypothesis import strategies as st

from conf.tiny_model import Teacher
from reasoning.stories import MAX_LEVEL, SEEN_LEVELS, OverThinker, Split, Step, Story, draw_stories, split_of

LEVELS = tuple(range(1, MAX_LEVEL + 1))
STORY = Story(
    "Ann", "apples", 12, (Step(7, "Ann gets 7 more"), Step(None, "The number doubles"), Step(-9, "Ann loses 9"))
)


def test_story_by_hand():
    assert STORY.text == "Ann has 12 apples. Ann gets 7 more. The number doubles. Ann loses 9. How many apples now?"
    assert STORY.values == (12, 19, 38, 29)
    # 2+7 = 9 carries nothing; 9+9 carries; 8-9 borrows.
    assert [step.is_risky(value) for step, value in zip(STORY.steps, STORY.values, strict=False)] == [False, True, True]
    assert STORY.steps[1].slip(19) == 28  # the carry dropped
    assert STORY.steps[2].slip(38) == 39  # the borrow forgotten
    assert STORY.steps[1].written(19, 38) == "19+19=38.\n"


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(list(Split)))
def test_stories_stay_in_range_and_in_their_split(seed: int, split: Split):
    for story in draw_stories(split, seed, 20, LEVELS):
        assert split_of(story.text) is split
        assert all(1 <= value <= 99 for value in story.values)


def test_splits_are_disjoint_even_at_level_1():
    drawn = [{s.text for s in draw_stories(split, seed, 300, (1,))} for split in Split for seed in (0, 1)]
    for index, texts in enumerate(drawn):
        for other in drawn[index + 1 + (index % 2 == 0) :]:
            assert not texts & other


def test_larger_draw_keeps_the_smaller_one():
    few, many = (draw_stories(Split.TRAIN, 3, count, LEVELS) for count in (50, 80))
    assert many[:50] == few
    assert len({story.text for story in many}) == 80
    assert [story.level for story in few[:10]] == list(LEVELS)


def test_every_level_has_stories_without_a_risky_step():
    stories = draw_stories(Split.TRAIN, 0, 1600, tuple(SEEN_LEVELS))
    for level in SEEN_LEVELS:
        risky = [story.risky_steps > 0 for story in stories if story.level == level]
        assert 0.5 < sum(risky) / len(risky) < 0.8


def test_teacher_without_mistakes_is_always_right():
    teacher = OverThinker(Teacher(slip_first=0, slip_again=0), random.Random(0))
    for story in draw_stories(Split.PRETRAIN, 0, 50, LEVELS):
        assert set(teacher.think(story).conclusions) == {story.answer}


def test_teacher_without_doubt_stops_after_the_first_pass():
    chances = Teacher(slip_first=0, doubt_right=0, go_on_sure=0, muse=0, close_plainly=0)
    thinking = OverThinker(chances, random.Random(0)).think(STORY)
    assert thinking.text == (
        "Start with 12.\n12+7=19.\n19+19=38.\n38-9=29.\nThat makes 29.\nTherefore the answer is 29.\n"
    )
    assert thinking.reply == "\nThe answer is \\boxed{29}."


def test_doubted_mistakes_are_marked():
    chances = Teacher(slip_first=1, slip_again=1, doubt_slip=1, go_on_doubtful=0, muse=0, close_plainly=0)
    thinking = OverThinker(chances, random.Random(0)).think(STORY)
    # 19+19 drops its carry: 28. 28-9 borrows again, and forgets it: 29, right by two wrongs.
    assert thinking.text == (
        "Start with 12.\n12+7=19.\n19+19=28?\n28-9=29?\nThat makes 29?\nTherefore the answer is 29.\n"
    )


@given(st.integers(0, 10**6))
def test_final_answer_is_the_last_conclusion_and_rechecks_are_bounded(seed: int):
    story = draw_stories(Split.PRETRAIN, seed, 1, LEVELS)[0]
    teacher = Teacher(close_plainly=0)
    thinking = OverThinker(teacher, random.Random(seed)).think(story)
    assert f"Therefore the answer is {thinking.conclusions[-1]}." in thinking.text
    assert 1 <= len(thinking.conclusions) <= teacher.max_rechecks + 1
