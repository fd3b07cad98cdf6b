"""Problems from their source. Knows: sources and records. Must not know: models, methods."""

from __future__ import annotations

import time

from conf.settings import Stories
from reasoning.records import Problem, TextPart
from reasoning.stories import METHOD_VERSION, Split, Story, draw_stories
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.workplace import Workplace


def story_problem(story: Story, split: Split, seed: int, index: int) -> Problem:
    return Problem(
        id=f"story-{split}-{seed}-{index}", prompt=(TextPart(text=story.text),), answer=str(story.answer),
        level=story.level,
    )  # fmt: skip


@step(version=f"1.{METHOD_VERSION}")
def draw_problems(place: Workplace, source: Stories, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. No two splits can share one, whatever the seeds."""
    started = time.monotonic()
    stories = draw_stories(split, seed, source.count, source.levels)
    rows = [story_problem(story, split, seed, index) for index, story in enumerate(stories)]
    return place.publish("problems", rows, rows_in=len(rows), started=started)
