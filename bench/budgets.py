"""Accuracy at token budgets from one generation, against separate generations with that maximum length.

    python -m bench.budgets

The bundled model on 480 stories, 4 samples each: once at full length, cut afterwards, and once at each budget. Ends
with an error if a difference is outside its 95 % interval.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

import pandas as pd

from conf.dto import Dto
from conf.engine import Storage
from conf.problems import Stories
from conf.sampling import Sampling
from models.inference.rollout_store import Purpose
from reasoning.evaluation import comparison, cut_at, model_figures, score_frame
from reasoning.records import Problem
from reasoning.stories import Split, draw_stories
from tasks.runtime.context import RunContext
from tasks.steps.problems import story_problem
from tasks.steps.sampling import answer_tokens, sample_and_verify, score

BUDGETS = (64, 96, 128, 192, 384)


def scores(ctx: RunContext, problems: list[Problem], max_tokens: int, seed: int) -> pd.DataFrame:
    model = ctx.resources.checkpoint(ctx.resources.model("tiny"))
    sampling = Sampling(max_tokens=max_tokens)
    sampled = sample_and_verify(ctx, f"{max_tokens} tokens", model, problems, sampling, Purpose.BENCHMARK, seed)
    by_id = {problem.id: problem for problem in problems}
    rows = [score(model, by_id[t.problem_id], t, answer_tokens=answer_tokens(model, t)) for t in sampled.traces]
    return score_frame(rows, model.shape)


def main() -> None:
    source = Stories(count=480)
    stories = draw_stories(Split.BENCHMARK, 0, source.count, source.levels)
    problems = [story_problem(story, Split.BENCHMARK, 0, index) for index, story in enumerate(stories)]
    is_outside = False
    with TemporaryDirectory() as root, RunContext("budgets", Storage(root=root), Dto().engine) as ctx:
        whole = scores(ctx, problems, Sampling().max_tokens, seed=0)
        print("| budget | cut afterwards, % (tokens) | generated at the budget, % (tokens) | difference, points |")
        print("| --- | --- | --- | --- |")
        for seed, budget in enumerate(BUDGETS, start=1):
            cut, own = cut_at(whole, budget), scores(ctx, problems, budget, seed)
            pair = comparison("cut", cut, "own", own)
            low, high = pair["accuracy_delta_ci"]
            is_outside |= not low <= 0 <= high
            texts = [_text(cut), _text(own), f"{100 * pair['accuracy_delta']:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"]
            print(f"| {budget} | {' | '.join(texts)} |", flush=True)
    sys.exit(is_outside)


def _text(scores: pd.DataFrame) -> str:
    figures = model_figures("model", "base", scores)
    return f"{100 * figures['accuracy']:.1f} ({figures['mean_tokens']:.1f})"


if __name__ == "__main__":
    main()
