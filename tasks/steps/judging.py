"""Completions of several models graded by one judge. Knows: the judge's step. Must not know: criteria, prompts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from conf.cot_distillation import Judging
from conf.llm import Llm
from conf.sampling import Sampling
from models.inference.rollout_store import Purpose
from reasoning.judging import question
from reasoning.llm_queries import Unusable, limited
from reasoning.records import Judged, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext
from tasks.steps.llm import asked_of
from tasks.steps.problems import by_id
from tasks.steps.sampling import draw_traces


@step
def judge_completions(
    place: RunContext, models: Sequence[ArtifactRef], problems: ArtifactRef, sampling: Sampling, judging: Judging,
    llm: Llm, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Judged: of each model the first completion that it was examined on, of the same problems, in an order
    that tells nothing."""
    started = time.monotonic()
    known = by_id(place, problems)
    luck = random.Random(f"judge/{seed}")
    chosen = luck.sample(sorted(known), min(judging.problems, len(known)))
    entries, usage = [], Usage()
    for index, model in enumerate(models):
        asked = [known[name] for name in chosen]
        drawn = draw_traces(
            place, "judged", place.checkpoint(model), asked, sampling, Purpose.BENCHMARK, seed
        )  # from the store: the models were examined on them
        usage += drawn.usage
        entries += [(index, trace) for trace in drawn.traces if trace.sample == 0]
    luck.shuffle(entries)
    asks = [question(known[trace.problem_id], trace.text) for _, trace in entries]
    asks = limited(asks, judging.max_tokens, "judging.max_tokens")
    found = asked_of(place, llm, "judge", asks, judging.most_unusable)
    rows = [
        Judged(model=index, problem_id=trace.problem_id, **reply.model_dump())
        for (index, trace), reply in zip(entries, found.replies, strict=True) if not isinstance(reply, Unusable)
    ]  # fmt: skip
    return place.publish(
        "judged", rows, rows_in=len(entries), dropped=dict(found.unusable), usage=usage + found.usage, started=started,
        payee=found.payee,
    )  # fmt: skip
