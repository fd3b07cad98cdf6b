"""Dialogues held and examined: two checkpoints as a couple, what they say, how that is scored (papers, section C.4).

Knows: couples, problems, the protocol's settings, the answer check. Must not know: how either model was trained.
"""

from __future__ import annotations

import time

from conf.long_short import Protocol
from conf.sampling import Sampling
from models.inference.dialogue_sampler import Talk, Talks, Tongue
from models.inference.rollout_store import Purpose
from reasoning.dialogue import Speaker
from reasoning.records import Conversation, Couple, Problem, Score, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext
from tasks.steps.prefix_sampling import set_aside
from tasks.steps.problems import by_id
from tasks.steps.sampling import failed_counts, refuse_nothing

COUPLE = "couple"
"""The kind of an artifact that stands for two models."""


@step
def couple(place: RunContext, long: ArtifactRef, short: ArtifactRef) -> ArtifactRef:
    """One row of Couple."""
    started = time.monotonic()
    row = Couple(long_uri=long.uri, long_digest=long.digest, short_uri=short.uri, short_digest=short.digest)
    trained_on = sum(model.count.rows_in for model in (long, short) if model.count)
    return place.publish(COUPLE, [row], rows_in=trained_on, started=started)


@step
def converse(
    place: RunContext, long: ArtifactRef, short: ArtifactRef, problems: ArtifactRef, protocol: Protocol,
    sampling: Sampling, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Conversation on problems that nothing else has read. Those that are not to be had count as not right."""
    started = time.monotonic()
    known, models = list(by_id(place, problems).values()), (place.checkpoint(long), place.checkpoint(short))
    tongue = Tongue(models[0], protocol)
    prompts = [tongue.prompts(problem) for problem in known]
    plans = [Talks(tongue, shown, sampling.samples) for shown in prompts]
    jobs = [plan.job(sampling) for plan in plans]
    usage = place.run_couple("talk", models, jobs, Purpose.BENCHMARK, seed)
    refused = {problem.id: job.refused for problem, job in zip(known, jobs, strict=True) if job.refused}
    refuse_nothing("talk", refused, known)
    answers = [[talk.dialogue.answer for talk in plan.talks] for plan in plans]
    verdicts, checks = place.verdicts(known, answers)
    rows = [
        conversation(problem, sample, talk, {speaker: len(ids) for speaker, ids in shown.items()}, verdict)
        for problem, plan, shown, judged in zip(known, plans, prompts, verdicts, strict=True)
        if problem.id not in refused
        for sample, (talk, verdict) in enumerate(zip(plan.talks, judged, strict=True))
    ]
    counts = {"cap hit": sum(row.hit_cap for row in rows), "malformed": sum(not row.is_well_formed for row in rows)}
    rows += [not_held(name, sample) for name in refused for sample in range(sampling.samples)]
    counts |= failed_counts(refused)
    place.list_set_aside(set_aside(refused))
    return place.publish(
        "conversations", rows, rows_in=len(known), usage=usage + checks, started=started, counts=counts
    )  # fmt: skip


def conversation(
    problem: Problem, sample: int, talk: Talk, shown: dict[Speaker, int], verdict: Verdict
) -> Conversation:  # fmt: skip
    """`shown`: tokens of what each speaker sees before the transcript."""
    return Conversation(
        problem_id=problem.id, sample=sample, transcript=str(talk.dialogue),
        long_calls=talk.calls(Speaker.LONG, shown[Speaker.LONG]),
        short_calls=talk.calls(Speaker.SHORT, shown[Speaker.SHORT]),
        hit_cap=talk.dialogue.hit_cap, is_well_formed=talk.dialogue.is_well_formed, verdict=verdict,
    )  # fmt: skip


def not_held(problem_id: str, sample: int) -> Conversation:
    """One for which an engine failed."""
    return Conversation(
        problem_id=problem_id, sample=sample, transcript="", long_calls=(), short_calls=(), hit_cap=False,
        is_well_formed=False, verdict=Verdict.NO_COMPLETION,
    )  # fmt: skip


@step
def score_conversations(place: RunContext, problems: ArtifactRef, conversations: ArtifactRef) -> ArtifactRef:
    """Rows of Score: tokens are those of both models together."""
    started = time.monotonic()
    level_of = {name: problem.level for name, problem in by_id(place, problems).items()}
    rows = place.rows(conversations, Conversation)
    scores = [
        Score(
            problem_id=row.problem_id, level=level_of[row.problem_id], sample=row.sample,
            prompt_tokens=row.prompt_tokens, tokens=row.tokens, calls=row.calls, truncated=row.hit_cap,
            verdict=row.verdict,
        )
        for row in rows
    ]  # fmt: skip
    return place.publish("scores", scores, rows_in=len(rows), usage=Usage(), started=started)


def models_of(pair: Couple) -> tuple[ArtifactRef, ArtifactRef]:
    """The long-thought and the short-thought model."""
    return (
        ArtifactRef(kind="checkpoint", uri=pair.long_uri, digest=pair.long_digest, rows=1),
        ArtifactRef(kind="checkpoint", uri=pair.short_uri, digest=pair.short_digest, rows=1),
    )
