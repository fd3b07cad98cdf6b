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


def answer_views(ctx: RunContext, settings: Evaluated, result: ExperimentResult) -> Iterator[ProblemView]:
    """Problems of each benchmark with the answers of each model that answers in a single completion or a dialogue."""
    for name, problems in result.problems.items():
        known = dict(list(by_id(ctx, problems).items())[:MAX_PROBLEMS])
        answers: dict[str, list[AnswerView]] = defaultdict(list)
        for model in result.eval_sets[name]:
            if model.model.kind != MODEL_PAIR and model.independent:
                _add_completions(ctx, model, known, settings.sampling_on(name), result.seed, answers)
        if name == next(iter(result.problems)):
            for pair, dialogues in result.dialogues.items():
                _add_dialogues(ctx, pair, dialogues, known, answers)
        models = [(model.name, model.role) for model in result.eval_sets[name]]
        for problem in known.values():
            if answers[problem.id]:
                yield _view(problem, name, answers[problem.id], models)


def _add_completions(
    ctx: RunContext,
    model: EvaluatedModel,
    known: Mapping[str, Problem],
    sampling: Sampling,
    seed: int,
    answers: dict[str, list[AnswerView]],
) -> None:
    """Completions that the rollout store of this machine no longer has are left out."""
    checkpoint = ctx.resources.checkpoint(model.model)
    keys = {name: _key(checkpoint, problem, sampling, seed) for name, problem in known.items()}
    stored = ctx.resources.store.find(list(keys.values()))
    scores = {(row.problem_id, row.sample): row for row in ctx.artifacts.rows(model.scores, Score)}
    for name, key in keys.items():
        for sample, completion in enumerate(stored[key][:ANSWERS_SHOWN]):
            if score := scores.get((name, sample)):
                answers[name].append(_answer(checkpoint, model.name, completion, score))


def _key(checkpoint: Checkpoint, problem: Problem, sampling: Sampling, seed: int) -> bytes:
    request = Request(checkpoint.prompt_ids(problem), sampling, sampling.samples)
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


def _view(
    problem: Problem, benchmark: str, answers: Sequence[AnswerView], models: Sequence[tuple[str, str]]
) -> ProblemView:
    def is_right(role: str) -> bool | None:
        names = {name for name, its in models if its == role}
        found = [answer.verdict is Verdict.RIGHT for answer in answers if answer.model in names]
        return found[0] if found else None

    base, method = is_right("base"), is_right("method")
    tags = {(False, True): "wrong → right", (True, False): "right → wrong", (True, True): "right twice"}
    return ProblemView(
        id=problem.id,
        set=benchmark,
        text=problem.text,
        answer=problem.answer,
        level=problem.level,
        subject=problem.subject,
        tags=(tags.get((bool(base), bool(method)), "wrong twice"),) if None not in (base, method) else (),
        answers=tuple(answers),
    )
