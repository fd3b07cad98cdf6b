"""One engine for callers side by side: shares of what it computes, and sessions of one model at a time."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Deliver, ScorableText, Session
from models.inference.own_servers import SharedBy
from models.inference.scripted_engine import ScriptedEngine
from models.inference.shared_engine import SharedEngine
from models.inference.stored_only import EngineNeeded, StoredOnly
from reasoning.token_ids import TokenIds


class Counting(ScriptedEngine):
    cache_tokens = 1001  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(lambda *_: pytest.fail("nothing is sampled"))
        self.models: list[Any] = []

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        _ = deliver
        self.models.append(model)
        yield None  # type: ignore[misc]


MODEL: Any = object()


def test_tokens_computed_for_two_views_are_shared_between_them_and_none_is_counted_twice():
    """100 before anybody works; then 30 for the first alone, 50 for both, 8 for the second alone."""
    engine = Counting()
    shared = SharedEngine(engine, 2)
    one, other = shared.view(), shared.view()
    engine.computed_prompt_tokens += 100
    with one.session(MODEL, print):
        engine.computed_prompt_tokens += 30
        with other.session(MODEL, print):
            engine.computed_prompt_tokens += 50
            assert (one.computed_prompt_tokens, other.computed_prompt_tokens) == (55, 25)
            first = one.computed_prompt_tokens
        assert one.computed_prompt_tokens == first
    with other.session(MODEL, print):
        engine.computed_prompt_tokens += 8
        assert other.computed_prompt_tokens == 8
    assert engine.models == [MODEL] * 3


def test_a_server_that_counts_from_zero_again_takes_nothing_away():
    engine = Counting()
    view = SharedEngine(engine, 1).view()
    engine.computed_prompt_tokens = 90
    with view.session(MODEL, print):
        engine.computed_prompt_tokens += 10
        assert view.computed_prompt_tokens == 10
        engine.computed_prompt_tokens = 4
        assert view.computed_prompt_tokens == 10
        engine.computed_prompt_tokens += 3
        assert view.computed_prompt_tokens == 13


def test_each_view_counts_on_its_share_of_the_cache_and_on_all_slots():
    view = SharedEngine(Counting(), 2).view()
    assert (view.cache_tokens, view.max_concurrency, view.block) == (500, 256, 32)
    assert list(view.log_probs(MODEL, [ScorableText(TokenIds((1, 2, 3)))])) == [[0.0, 0.0]]


def test_sessions_of_one_model_run_side_by_side_and_one_of_another_waits():
    lock, order = SharedBy(), list[str]()
    inside = threading.Barrier(2)

    def same(name: str) -> None:
        with lock.of("a"):
            inside.wait(timeout=60)  # both are within
            order.append(name)

    def another() -> None:
        with lock.of("b"):
            order.append("b")

    with ThreadPoolExecutor(3) as threads, lock.of("a"):
        waiting = threads.submit(another)
        done = [threads.submit(same, name) for name in ("a1", "a2")]
        for each in done:
            each.result(timeout=60)
        assert not waiting.done()
    assert order[2:] == ["b"]


def test_an_engine_of_stored_completions_asks_for_another_as_soon_as_it_is_needed():
    engine = StoredOnly()
    with pytest.raises(EngineNeeded), engine.session(MODEL, print):
        pytest.fail("there is no session")
    with pytest.raises(EngineNeeded):
        engine.log_probs(MODEL, [ScorableText(TokenIds((1, 2)))])
    assert list(engine.log_probs(MODEL, [])) == []
