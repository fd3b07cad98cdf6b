"""Evaluation of Long⊗Short: two checkpoints as a pair, their dialogues, and the scores of the dialogues."""

from __future__ import annotations

from conf.long_short import Protocol
from conf.sampling import Sampling
from models.inference.dialogue_sampler import DialogueSampler, DialogueState, TurnCodec
from models.inference.rollout_store import Purpose
from reasoning.dialogue import Speaker
from reasoning.records import EvaluatedDialogue, ModelPair, Problem, Score, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import StepContext
from tasks.steps.prefix_sampling import skipped_rows
from tasks.steps.problems import by_id
from tasks.steps.sampling import failed_counts

MODEL_PAIR = "model-pair"
"""Kind of an artifact that names two models."""


@step()
def pair_models(ctx: StepContext, long: ArtifactRef, short: ArtifactRef) -> ArtifactRef:
    """One row of ModelPair. The pair is one artifact, so the upstream steps of both models are its cost."""
    row = ModelPair(long_uri=long.uri, long_digest=long.digest, short_uri=short.uri, short_digest=short.digest)
    trained_on = sum(model.count.rows_in for model in (long, short) if model.count)
    return ctx.publish(MODEL_PAIR, [row], rows_in=trained_on)


@step("sampling")
def evaluate_dialogues(
    ctx: StepContext,
    long: ArtifactRef,
    short: ArtifactRef,
    problems: ArtifactRef,
    protocol: Protocol,
    sampling: Sampling,
    seed: int,
) -> ArtifactRef:
    """Rows of EvaluatedDialogue, on problems that no other step reads. A dialogue that failed counts as not right.

    Raises TooManyFailed.
    """
    known = list(by_id(ctx, problems).values())
    models = ctx.resources.checkpoint(long), ctx.resources.checkpoint(short)
    codec = TurnCodec(models[0], protocol)
    prompts = [codec.prompts(problem) for problem in known]
    plans = [DialogueSampler(codec, of_problem, sampling.samples) for of_problem in prompts]
    jobs = [plan.job(sampling) for plan in plans]
    usage = ctx.resources.run_pair("dialogues", models, jobs, Purpose.BENCHMARK, seed)
    failed = {problem.id: job.failure for problem, job in zip(known, jobs, strict=True) if job.failure}
    ctx.resources.validate_some_served("dialogues", failed, len(known) - len(failed))
    answers = [[state.dialogue.answer for state in plan.dialogues] for plan in plans]
    verdicts, checks = ctx.resources.verdicts(known, answers)
    rows = [
        evaluated_dialogue(problem, sample, state, {speaker: len(ids) for speaker, ids in of_problem.items()}, verdict)
        for problem, plan, of_problem, checked in zip(known, plans, prompts, verdicts, strict=True)
        if problem.id not in failed
        for sample, (state, verdict) in enumerate(zip(plan.dialogues, checked, strict=True))
    ]
    counts = {
        "round limit hit": sum(row.hit_cap for row in rows),
        "malformed": sum(not row.is_well_formed for row in rows),
    }
    rows += [dialogue_without_completion(name, sample) for name in failed for sample in range(sampling.samples)]
    counts |= failed_counts(failed)
    ctx.report_skipped(skipped_rows(failed))
    return ctx.publish("dialogues", rows, rows_in=len(known), usage=usage + checks, counts=counts)


def evaluated_dialogue(
    problem: Problem, sample: int, state: DialogueState, prompt_tokens: dict[Speaker, int], verdict: Verdict
) -> EvaluatedDialogue:
    """`prompt_tokens`: tokens that each speaker reads before the transcript."""
    return EvaluatedDialogue(
        problem_id=problem.id,
        sample=sample,
        transcript=str(state.dialogue),
        long_calls=state.calls(Speaker.LONG, prompt_tokens[Speaker.LONG]),
        short_calls=state.calls(Speaker.SHORT, prompt_tokens[Speaker.SHORT]),
        hit_cap=state.dialogue.hit_cap,
        is_well_formed=state.dialogue.is_well_formed,
        verdict=verdict,
    )


def dialogue_without_completion(problem_id: str, sample: int) -> EvaluatedDialogue:
    """The row of a dialogue for which an engine failed."""
    return EvaluatedDialogue(
        problem_id=problem_id,
        sample=sample,
        transcript="",
        long_calls=(),
        short_calls=(),
        hit_cap=False,
        is_well_formed=False,
        verdict=Verdict.NO_COMPLETION,
    )


@step()
def score_dialogues(ctx: StepContext, problems: ArtifactRef, dialogues: ArtifactRef) -> ArtifactRef:
    """Rows of Score. Tokens are those of both models together."""
    known = by_id(ctx, problems)
    rows = ctx.artifacts.rows(dialogues, EvaluatedDialogue)
    scores = [
        Score(
            problem_id=row.problem_id,
            level=known[row.problem_id].level,
            subject=known[row.problem_id].subject,
            sample=row.sample,
            prompt_tokens=row.prompt_tokens,
            tokens=row.tokens,
            calls=row.calls,
            truncated=row.hit_cap,
            verdict=row.verdict,
        )
        for row in rows
    ]
    return ctx.publish("scores", scores, rows_in=len(rows), usage=Usage())


def models_of_pair(pair: ModelPair) -> tuple[ArtifactRef, ArtifactRef]:
    """References to the long-thought and the short-thought model."""
    return (
        ArtifactRef(kind="checkpoint", uri=pair.long_uri, digest=pair.long_digest, rows=1),
        ArtifactRef(kind="checkpoint", uri=pair.short_uri, digest=pair.short_digest, rows=1),
    )
