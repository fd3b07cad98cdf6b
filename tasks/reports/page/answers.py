"""Answers of a run's models to benchmark problems, side by side: completions from the rollout store, and dialogues."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from conf.evaluation import Evaluated
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.rollout_store import Purpose, completion_key
from reasoning.dialogue import turns_of
from reasoning.records import EvaluatedDialogue, Problem, Score, Verdict, completed
from reasoning.rewards import DialogueOutcome, Rewards, group_rewards
from tasks.reports.page.views import AnswerView, ProblemView, Turn
from tasks.reports.seed_results import EvaluatedModel, ExperimentResult
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.dialogues import MODEL_PAIR
from tasks.steps.problems import by_id

ANSWERS_SHOWN = 2
"""Samples of each model that are shown."""
MAX_PROBLEMS = 500
"""Problems of a benchmark whose answers are shown."""


def answer_views(
    ctx: RunContext, settings: Evaluated, result: ExperimentResult, notes: list[str]
) -> Iterator[ProblemView]:
    """Problems of each benchmark with the answers of each model that answers in a single completion or a dialogue.
    `notes` gets what is not shown."""
    for name, problems in result.problems.items():
        known = dict(list(by_id(ctx, problems).items())[:MAX_PROBLEMS])
        if len(known) < problems.rows:
            notes.append(f"{name}: the first {len(known):,} of {problems.rows:,} problems.")
        answers: dict[str, list[AnswerView]] = defaultdict(list)
        for model in result.eval_sets[name]:
            if model.model.kind != MODEL_PAIR and model.independent:
                sampling = settings.sampling_on(name)
                if missing := _add_completions(ctx, model, known, sampling, result.seed, answers):
                    notes.append(f"{name}: the store here has no answers of {model.name} to {missing:,} problems.")
        if name == next(iter(result.problems)):
            for pair, dialogues in result.dialogues.items():
                _add_dialogues(ctx, pair, dialogues, known, answers)
        rates = {role: _rates(ctx, result.eval_sets[name], role) for role in ("base", "method")}
        for problem in known.values():
            if answers[problem.id]:
                yield ProblemView.of(problem, name, _compared(problem.id, rates), answers=tuple(answers[problem.id]))


def _add_completions(
    ctx: RunContext,
    model: EvaluatedModel,
    known: Mapping[str, Problem],
    sampling: Sampling,
    seed: int,
    answers: dict[str, list[AnswerView]],
) -> int:
    """Adds a model's answers. Returns the number of problems whose completions this machine's store does not have."""
    checkpoint = ctx.resources.checkpoint(model.model)
    checkpoint = checkpoint.answering_directly() if model.answers_directly else checkpoint
    keys = {name: _key(checkpoint, problem, sampling, seed) for name, problem in known.items()}
    stored = ctx.resources.store.find(list(keys.values()))
    scores = {(row.problem_id, row.sample): row for row in ctx.artifacts.rows(model.scores, Score)}
    for name, key in keys.items():
        for sample, completion in enumerate(stored[key][:ANSWERS_SHOWN]):
            if score := scores.get((name, sample)):
                answers[name].append(_answer(checkpoint, model.name, completion, score))
    return sum(not stored[key] for key in keys.values())


def _rates(ctx: RunContext, models: Sequence[EvaluatedModel], role: str) -> dict[str, float]:
    """The share of right answers to each problem, over all samples of the model in a role."""
    of_role = next((model for model in models if model.role == role), None)
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in ctx.artifacts.stream(of_role.scores, Score) if of_role else ():
        verdicts[row.problem_id].append(row.verdict is Verdict.RIGHT)
    return {name: sum(right) / len(right) for name, right in verdicts.items()}


def _compared(name: str, rates: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """How often the method is right on a problem, compared with the base."""
    base, method = rates["base"].get(name), rates["method"].get(name)
    if base is None or method is None:
        return ()
    return (("right as often as the base", "right more often", "right less often")[(method > base) - (method < base)],)


def _key(checkpoint: Checkpoint, problem: Problem, sampling: Sampling, seed: int) -> bytes:
    images = checkpoint.images_of(problem)
    request = Request(checkpoint.prompt_ids(problem), sampling, sampling.samples, images=images)
    return completion_key(checkpoint, request, Purpose.BENCHMARK, seed)


def _answer(checkpoint: Checkpoint, name: str, completion: Completion, score: Score) -> AnswerView:
    return AnswerView(
        model=name,
        verdict=score.verdict,
        tokens=len(completion.token_ids),
        truncated=not completion.finished,
        turns=(Turn(speaker="", text=checkpoint.decode(completion.token_ids)),),
    )


def _add_dialogues(
    ctx: RunContext,
    pair: str,
    dialogues: ArtifactRef,
    known: Mapping[str, Problem],
    answers: dict[str, list[AnswerView]],
) -> None:
    """`rewards` compare a dialogue with the others of its problem, as in training; there they are weighted."""
    groups: dict[str, list[EvaluatedDialogue]] = defaultdict(list)
    for row in completed(ctx.artifacts.stream(dialogues, EvaluatedDialogue)):
        groups[row.problem_id].append(row)
    for name, rows in groups.items():
        rewards = group_rewards([DialogueOutcome.of(row) for row in rows])
        for row, reward in list(zip(rows, rewards, strict=True))[:ANSWERS_SHOWN] if name in known else ():
            answers[name].append(_dialogue(pair, row, reward))


def _dialogue(pair: str, row: EvaluatedDialogue, rewards: Rewards) -> AnswerView:
    long, short = (sum(call.tokens for call in calls) for calls in (row.long_calls, row.short_calls))
    return AnswerView(
        model=pair,
        verdict=row.verdict,
        tokens=row.tokens,
        truncated=row.hit_cap,
        turns=tuple(Turn(speaker=turn.speaker, text=str(turn)) for turn in turns_of(row.transcript)),
        facts={
            "rewards": f"correctness {rewards.correctness:g}, format {rewards.format:g}, length {rewards.length:+.2f}",
            "tokens": f"{long} by Long, {short} by Short",
        },
    )
