"""The naturalness of pruned text, with an engine whose log-probs are known."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from conf.engine import Engine, Storage
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.scripted_engine import ScriptedEngine
from reasoning.pruning import PruningPlan
from reasoning.records import Problem, TextPart, Trace, Verdict
from tasks.runtime.context import RunContext
from tasks.steps.dto import restore_unnatural
from tasks.steps.prefix_sampling import LogProbScorer, Prefix
from tests.flows.world import speak

PROBLEM = Problem(id="p", prompt=(TextPart(text="How many?"),), answer="1")
EXPECTED, SURPRISED = 100, 200
"""A token that is certain right after EXPECTED − 1 alone, and one that no context makes likelier."""


class Reader(ScriptedEngine):
    """The log-prob of a token is minus its id, but that of EXPECTED is 0 after its predecessor and −50 elsewhere."""

    def __init__(self) -> None:
        super().__init__(speak)
        self.read = 0

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float]]:
        _ = model
        self.read += len(texts)
        for text in texts:
            yield [
                (0.0 if before == EXPECTED - 1 else -50.0) if token == EXPECTED else -float(token)
                for before, token in pairwise(text)
            ]


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def scorer(tmp_path: Path, reader: Reader) -> Iterator[LogProbScorer]:
    with RunContext("test", Storage(root=str(tmp_path)), Engine(), make_engine=lambda *_: reader) as ctx:
        yield LogProbScorer(ctx.resources, Checkpoint.open(TINY_MODEL), {"p": PROBLEM})


def pruning(spans: Sequence[tuple[int, ...]], removed: Sequence[int]) -> PruningPlan:
    """A trace of these segments after its probes: `removed` are not needed for the answer."""
    token_ids = tuple(token for span in spans for token in span)
    trace = Trace(problem_id="p", sample=0, token_ids=token_ids, text="", truncated=False, verdict=Verdict.RIGHT)
    opened = PruningPlan(trace, [sum(map(len, spans[: n + 1])) for n in range(len(spans))], 8, 0.5)
    while asks := opened.next_ranges():
        opened.add(asks[0], [asks[0].prefix in removed] * asks[0].count)
    return opened


def test_each_token_of_a_prefix_has_its_own_log_prob(scorer: LogProbScorer, reader: Reader):
    assert scorer.log_probs("read", [Prefix("p", (7, 8, 9)), Prefix("p", (5,))]) == [[-7, -8, -9], [-5]]
    assert scorer.log_probs("read", []) == []
    assert reader.read == 2


def test_what_a_kept_token_hangs_on_comes_back(scorer: LogProbScorer):
    hanging = pruning([(1,), (2,), (3, EXPECTED - 1), (EXPECTED, 4), (5,), (6,)], removed=[1, 2, 4])
    free = pruning([(1,), (2,), (3, EXPECTED - 1), (4,)], removed=[1, 2])
    restore_unnatural(scorer, [hanging, free], most=3.0)
    assert hanging.removed == (1, 4)  # segment 2 says what segment 3 goes on from; 1 and 4 are not missed
    assert free.removed == (1, 2)


def test_a_token_that_is_unlikely_with_and_without_is_no_reason(scorer: LogProbScorer):
    item = pruning([(1,), (2,), (SURPRISED,)], removed=[1])
    restore_unnatural(scorer, [item], most=3.0)
    assert item.removed == (1,)


def test_noise_before_all_that_was_removed_is_no_reason(scorer: LogProbScorer):
    item = pruning([(1,), (2,), (3,)], removed=[1])
    assert item.first_unnatural([-1.0, -2.0, -3.0], [-9.0, -3.0], 3.0) is None
    assert item.first_unnatural([-1.0, -2.0, -3.0], [-1.0, -9.0], 3.0) == 2
    untouched = pruning([(1,), (2,), (3,)], removed=[])
    restore_unnatural(scorer, [untouched], most=3.0)
    assert scorer.usage.prompt_tokens == 0
