"""How prefixes of traces are put to an engine: probes of what they answer, and endings.

Knows: prompts, exit and closing texts, the answer check. Must not know: the rules that choose prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from conf.settings import Finalizing, Probing
from models.checkpoint import Checkpoint
from models.engine import Completion, Request
from models.store import Purpose
from reasoning.answers import CLOSE_THINK, final_answer, until_closing_brace
from reasoning.records import Problem, Trace, Usage, Verdict
from tasks.workplace import Workplace

TokenIds = tuple[int, ...]


class Prefix(NamedTuple):
    """Thinking so far, of one problem."""

    problem_id: str
    token_ids: TokenIds


class Open(Protocol):
    """Something that asks for one prefix after another until it knows enough."""

    @property
    def trace(self) -> Trace: ...
    @property
    def is_open(self) -> bool: ...
    def next_prefix(self) -> TokenIds: ...
    def add(self, outcomes: Sequence[bool]) -> None: ...


Judge = Callable[[Sequence[Open], Sequence[Sequence[Completion]]], list[list[bool]]]


class Prober:
    """Closes prefixes with the exit text and samples the answer alone (papers, section B.2–B.3)."""

    def __init__(self, place: Workplace, model: Checkpoint, problems: dict[str, Problem], probing: Probing, seed: int):
        self._place, self._model, self._problems, self._seed = place, model, problems, seed
        self._exit = model.encode(probing.exit_text)
        self._sampling = probing.sampling
        self.usage = Usage()

    def close_all(self, stage: str, purpose: Purpose, items: Sequence[Open], judge: Judge | None = None) -> None:
        """Probes until none of `items` is open, one prefix of each at a time. `judge` says for each rollout whether it
        speaks for stopping: where it is not given, whether its answer is right."""
        wave = 0
        while still_open := [item for item in items if item.is_open]:
            wave += 1
            requests = [
                Request(self._prompt(item) + item.next_prefix() + self._exit, self._sampling, self._sampling.samples)
                for item in still_open
            ]
            drawn = self._place.draw(f"{stage} {wave}", self._model, requests, purpose, self._seed)
            self.usage += drawn.usage
            for item, outcomes in zip(still_open, (judge or self._right)(still_open, drawn.completions), strict=True):
                item.add(outcomes)

    def answers(self, completions: Sequence[Completion]) -> list[str | None]:
        """The text of each rollout's answer."""
        return [until_closing_brace(self._model.decode(completion.token_ids)) for completion in completions]

    def _prompt(self, item: Open) -> TokenIds:
        return self._model.prompt_ids(self._problems[item.trace.problem_id])

    def _right(self, items: Sequence[Open], completions: Sequence[Sequence[Completion]]) -> list[list[bool]]:
        asked = [self._problems[item.trace.problem_id] for item in items]
        verdicts, checks = self._place.verdicts(asked, [self.answers(group) for group in completions])
        self.usage += checks
        return [[verdict is Verdict.RIGHT for verdict in group] for group in verdicts]


class Ender:
    """Draws endings for cut traces: the closing text, then whatever the model goes on with (section B.5)."""

    def __init__(
        self, place: Workplace, model: Checkpoint, problems: dict[str, Problem], finalizing: Finalizing, seed: int
    ):
        self._place, self._model, self._problems, self._seed = place, model, problems, seed
        self._closing = model.encode(finalizing.closing_text)
        self._sampling = finalizing.sampling
        self.usage = Usage()

    def endings(
        self, stage: str, purpose: Purpose, prefixes: Sequence[Prefix], count: int | None = None
    ) -> list[list[tuple[TokenIds, Verdict]]]:
        """For each prefix `count` endings (as many as the settings say), each with its verdict.

        An ending that does not finish, or does not close the thinking exactly once, has no answer.
        """
        asked = [self._problems[prefix.problem_id] for prefix in prefixes]
        requests = [
            Request(
                self._model.prompt_ids(problem) + prefix.token_ids + self._closing, self._sampling,
                count or self._sampling.samples,
            )
            for problem, prefix in zip(asked, prefixes, strict=True)
        ]  # fmt: skip
        drawn = self._place.draw(stage, self._model, requests, purpose, self._seed)
        answers = [[self._answer(completion) for completion in group] for group in drawn.completions]
        verdicts, checks = self._place.verdicts(asked, answers)
        self.usage += drawn.usage + checks
        return [
            [(self._closing + c.token_ids, v) for c, v in zip(group, judged, strict=True)]
            for group, judged in zip(drawn.completions, verdicts, strict=True)
        ]

    def _answer(self, completion: Completion) -> str | None:
        text = self._model.decode(self._closing + completion.token_ids)
        return final_answer(text) if completion.finished and text.count(CLOSE_THINK) == 1 else None


class Scorer:
    """Reads prefixes as their model would have written them."""

    def __init__(self, place: Workplace, model: Checkpoint, problems: dict[str, Problem]):
        self._place, self._model, self._problems = place, model, problems
        self.usage = Usage()

    def log_probs(self, stage: str, prefixes: Sequence[Prefix]) -> list[list[float]]:
        """For each prefix the log-prob of each of its tokens, given its problem and what comes before."""
        prompts = [self._model.prompt_ids(self._problems[prefix.problem_id]) for prefix in prefixes]
        texts = [prompt + prefix.token_ids for prompt, prefix in zip(prompts, prefixes, strict=True)]
        found, usage = self._place.log_probs(stage, self._model, texts)
        self.usage += usage
        return [values[len(prompt) - 1 :] for values, prompt in zip(found, prompts, strict=True)]
