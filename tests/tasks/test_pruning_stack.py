"""Segments are restored by log-probs of a fake engine."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from conf.engine import Engine, Storage
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import ScorableText
from models.inference.scripted_engine import ScriptedEngine
from reasoning.pruning import PruningPlan
from reasoning.records import Problem, TextPart, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.runtime.context import RunContext
from tasks.steps.prefix_sampling import LogProbScorer, Prefix
from tasks.steps.pruning import restore_unnatural
from tests.flows.world import speak

PROBLEM = Problem(id="p", prompt=(TextPart(text="How many?"),), answer="1")
EXPECTED, SURPRISED = 100, 200
"""EXPECTED is certain after EXPECTED − 1 and unlikely elsewhere. SURPRISED is unlikely in every context."""


class FakeLogProbs(ScriptedEngine):
    """The log-prob of a token is minus its id. That of EXPECTED is 0 after EXPECTED − 1, else −50."""

    def __init__(self) -> None:
        super().__init__(speak)
        self.texts_scored = 0

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float]]:
        _ = model
        self.texts_scored += len(texts)
        for text in texts:
            yield [
                (0.0 if before == EXPECTED - 1 else -50.0) if token == EXPECTED else -float(token)
                for before, token in pairwise(text.token_ids)
            ]


@pytest.fixture
def engine() -> FakeLogProbs:
    return FakeLogProbs()


@pytest.fixture
def scorer(tmp_path: Path, engine: FakeLogProbs) -> Iterator[LogProbScorer]:
    with RunContext("test", Storage(root=str(tmp_path)), Engine(), make_engine=lambda *_: engine) as ctx:
        yield LogProbScorer(ctx.resources, Checkpoint.open(TINY_MODEL), {"p": PROBLEM}, 2)


def pruning(spans: Sequence[tuple[int, ...]], removed: Sequence[int]) -> PruningPlan:
    """The pruning of a trace with segments `spans`, after probes that found the segments `removed` unnecessary."""
    token_ids = TokenIds.join(spans)
    trace = Trace(problem_id="p", sample=0, token_ids=token_ids, text="", truncated=False, verdict=Verdict.RIGHT)
    item = PruningPlan(trace, [sum(map(len, spans[: n + 1])) for n in range(len(spans))], 8, 0.5)
    while ranges := item.next_ranges():
        item.add(ranges[0], [ranges[0].prefix in removed] * ranges[0].count)
    return item


def test_each_token_of_a_prefix_has_its_own_log_prob(scorer: LogProbScorer, engine: FakeLogProbs):
    prefixes = [Prefix("p", TokenIds((7, 8, 9))), Prefix("p", TokenIds((5,)))]
    assert scorer.log_probs("read", prefixes) == [[-7, -8, -9], [-5]]
    assert scorer.log_probs("read", []) == []
    assert engine.texts_scored == 2


def test_a_segment_that_a_kept_token_depends_on_is_restored(scorer: LogProbScorer):
    dependent = pruning([(1,), (2,), (3, EXPECTED - 1), (EXPECTED, 4), (5,), (6,)], removed=[1, 2, 4])
    independent = pruning([(1,), (2,), (3, EXPECTED - 1), (4,)], removed=[1, 2])
    restore_unnatural(scorer, [dependent, independent], max_logprob_drop=3.0)
    assert dependent.removed == (1, 4)  # segment 3 continues segment 2; nothing depends on 1 and 4
    assert independent.removed == (1, 2)


def test_a_token_that_is_unlikely_in_both_texts_restores_nothing(scorer: LogProbScorer):
    item = pruning([(1,), (2,), (SURPRISED,)], removed=[1])
    restore_unnatural(scorer, [item], max_logprob_drop=3.0)
    assert item.removed == (1,)


def test_a_change_before_the_first_removed_segment_restores_nothing(scorer: LogProbScorer):
    item = pruning([(1,), (2,), (3,)], removed=[1])
    assert item.first_unnatural([-1.0, -2.0, -3.0], [-9.0, -3.0], 3.0) is None
    assert item.first_unnatural([-1.0, -2.0, -3.0], [-1.0, -9.0], 3.0) == 2
    untouched = pruning([(1,), (2,), (3,)], removed=[])
    restore_unnatural(scorer, [untouched], max_logprob_drop=3.0)
    assert scorer.usage.prompt_tokens == 0
