from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.settings import Sampling
from models.checkpoint import Checkpoint
from models.engine import Completion, Finished, Request
from models.scripted import ScriptedEngine
from models.store import Purpose, RolloutStore, identity
from tests.models.fakes import fake_checkpoint

SAMPLING = Sampling(samples=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def counting() -> ScriptedEngine:
    """Every completion is its own running number, so a repeated one would show."""
    return ScriptedEngine(lambda model, request, number: Completion((number,), True))


def requests(*prompts: int, count: int = 4) -> list[Request]:
    return [Request((prompt,), SAMPLING, count) for prompt in prompts]


def test_what_is_stored_is_never_drawn_again(tmp_path: Path, model: Checkpoint):
    url = f"sqlite:///{tmp_path / 'store'}"
    engine = counting()
    first = RolloutStore(url, engine).draw(model, requests(1, 2), Purpose.TRAIN, 0)
    again = RolloutStore(url, engine).draw(model, requests(1, 2, 3), Purpose.TRAIN, 0)
    assert again.completions[:2] == first.completions
    assert engine.completions == 12
    assert (first.usage.reused_completions, again.usage.reused_completions) == (0, 8)
    assert (first.usage.generated_tokens, again.usage.generated_tokens) == (8, 4)


def test_more_samples_keep_the_ones_there_are(model: Checkpoint):
    engine = counting()
    store = RolloutStore("sqlite://", engine)
    few = store.draw(model, requests(1, count=2), Purpose.TRAIN, 0).completions[0]
    many = store.draw(model, requests(1, count=5), Purpose.TRAIN, 0).completions[0]
    assert many[:2] == few
    assert engine.completions == 5


def test_alike_requests_share_their_completions(model: Checkpoint):
    engine = counting()
    drawn = RolloutStore("sqlite://", engine).draw(model, requests(1, 2, 1), Purpose.PROBE, 0)
    assert drawn.completions[0] == drawn.completions[2]
    assert engine.completions == 8


def test_seed_purpose_sampling_prompt_and_model_keep_completions_apart(tmp_path: Path, model: Checkpoint):
    other = fake_checkpoint(tmp_path, {"model.embed_tokens.weight": [6, 8]})
    base = Request((1,), SAMPLING, 4)
    hotter = replace(base, sampling=Sampling(temperature=0.7))
    identities = {
        identity(model, base, Purpose.TRAIN, 0), identity(model, base, Purpose.TRAIN, 1),
        identity(model, base, Purpose.BENCHMARK, 0), identity(model, hotter, Purpose.TRAIN, 0),
        identity(model, replace(base, prompt_ids=(2,)), Purpose.TRAIN, 0), identity(other, base, Purpose.TRAIN, 0),
    }  # fmt: skip
    assert len(identities) == 6
    more = replace(base, sampling=Sampling(samples=9))
    assert identity(model, more, Purpose.TRAIN, 0) == identity(model, base, Purpose.TRAIN, 0)


class DiesAfter(ScriptedEngine):
    """Breaks off after some batches, as a killed server does."""

    def __init__(self, batches: int):
        super().__init__(lambda model, request, number: Completion((number,), True))
        self._batches = batches

    def generate(self, model: Checkpoint, requests: Sequence[Request]) -> Iterator[list[Finished]]:
        for index, batch in enumerate(super().generate(model, requests)):
            if index == self._batches:
                raise ConnectionError("the server is gone")
            yield batch


@settings(max_examples=15)
@given(st.integers(0, 5))
def test_after_a_crash_only_the_unfinished_is_drawn(
    model: Checkpoint, tmp_path_factory: pytest.TempPathFactory, batches: int
):
    url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'db'}"
    with pytest.raises(ConnectionError):
        RolloutStore(url, DiesAfter(batches)).draw(model, requests(1, 2, 3, 4, 5, 6), Purpose.TRAIN, 0)
    engine = counting()
    RolloutStore(url, engine).draw(model, requests(1, 2, 3, 4, 5, 6), Purpose.TRAIN, 0)
    assert engine.requests == 6 - batches


def test_of_two_runs_that_draw_the_same_the_first_committed_counts_for_both(tmp_path: Path, model: Checkpoint):
    url = f"sqlite:///{tmp_path / 'store'}"

    class Overtaken(ScriptedEngine):
        """While it draws, another run draws and commits the same."""

        def generate(self, model: Checkpoint, requests: Sequence[Request]) -> Iterator[list[Finished]]:
            other.append(RolloutStore(url, counting()).draw(model, requests, Purpose.TRAIN, 0).completions)
            yield from super().generate(model, requests)

    other: list[list[tuple[Completion, ...]]] = []
    engine = Overtaken(lambda model, request, number: Completion((1000 + number,), True))
    assert RolloutStore(url, engine).draw(model, requests(1, 2), Purpose.TRAIN, 0).completions == other[0]


def test_progress_counts_every_request_once(model: Checkpoint):
    heard: list[tuple[int, int]] = []
    store = RolloutStore("sqlite://", counting())
    store.draw(model, requests(1, count=2), Purpose.TRAIN, 0)
    store.draw(model, requests(1, 2, 2, count=2), Purpose.TRAIN, 0, lambda done, tokens: heard.append((done, tokens)))
    assert sum(done for done, _ in heard) == 3
    assert sum(tokens for _, tokens in heard) == 2
