"""The rollout executor with engines that reply in any order, crash, refuse requests, or are shared by two runs."""

import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference import rollout_executor
from models.inference.engine import Completion, Deliver, FailedRequest, Failure, Finished, Request, Session
from models.inference.rollout_executor import FailureBudget, RolloutExecutor, TooManyFailed
from models.inference.rollout_store import Purpose, RolloutStore, StoredCompletion, completion_key
from models.inference.scheduler import EngineScheduler, PendingRequest, SamplingJob, UtilisationClock
from models.inference.scripted_engine import ScriptedEngine
from reasoning.records import Usage
from reasoning.sampling_plans import ForwardScanPlan, FullEstimate, SampleRange
from reasoning.token_ids import TokenIds
from tests.models.fakes import fake_checkpoint

K = 8
SAMPLING = Sampling(samples=K)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def is_right(prompt: Sequence[int], sample: int) -> bool:
    """Whether a sample of a prompt is right: random but deterministic."""
    return random.Random(f"{tuple(prompt)}{sample}").random() < 0.45


class RandomEngine(ScriptedEngine):
    """Sample n of a prompt is (n, 1) if it is right, else (n, 0). Requests are served in random order."""

    def __init__(self, seed: int = 0, crashes_after: int | None = None):
        super().__init__(lambda model, request, number: Completion(TokenIds((number,)), True))
        self.order = random.Random(seed)
        self._left = crashes_after
        self.sampled: Counter[TokenIds] = Counter()
        self.longest_queue = 0

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        _ = model
        session = _RandomSession(self, deliver)
        thread = threading.Thread(target=session.serve, daemon=True)
        thread.start()
        yield session
        session.submit(-1, Request(TokenIds(), SAMPLING, 0), 0)
        thread.join()

    def answer(self, request_id: int, request: Request) -> Finished | FailedRequest | BaseException:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                return ConnectionError("the server is gone")
        if request.prompt_ids == TokenIds((13,)):
            return FailedRequest(request_id, "refused for the test")
        first = self.sampled[request.prompt_ids]
        self.sampled[request.prompt_ids] += request.count
        completions = [
            Completion(TokenIds((sample, int(is_right(request.prompt_ids, sample)))), True)
            for sample in range(first, first + request.count)
        ]
        return Finished(request_id, tuple(completions))


class _RandomSession:
    """Serves queued requests in a thread, in random order."""

    def __init__(self, engine: RandomEngine, deliver: Deliver):
        self._engine, self._deliver = engine, deliver
        self._queue: list[tuple[int, Request]] = []
        self._changed = threading.Condition()

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        _ = affinity_key
        with self._changed:
            self._queue.append((request_id, request))
            self._engine.longest_queue = max(self._engine.longest_queue, len(self._queue))
            self._changed.notify()

    def serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                request_id, request = self._queue.pop(self._engine.order.randrange(len(self._queue)))
            if request_id < 0:
                return
            self._deliver(self._engine.answer(request_id, request))


def trace_job(trace: int, prefixes: int, lookahead: int = 0) -> SamplingJob:
    plan = ForwardScanPlan(prefixes, K, 0.5, lookahead)
    return SamplingJob(plan, lambda prefix: TokenIds((trace, prefix)), SAMPLING, right, 2)


def right(completions: Sequence[Completion]) -> list[bool]:
    return [bool(completion.token_ids[1]) for completion in completions]


def expected_crossing(trace: int, prefixes: int) -> int | None:
    passes = (sum(is_right((trace, prefix), sample) for sample in range(K)) > K / 2 for prefix in range(prefixes))
    return next((prefix for prefix, passed in enumerate(passes) if passed), None)


def rollouts(url: str, engine: Any, model: Checkpoint) -> RolloutExecutor:
    return RolloutExecutor(RolloutStore(url), [EngineScheduler(engine, model)], Purpose.PROBE, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(0, 3))
def test_decisions_do_not_depend_on_the_order_of_replies(model: Checkpoint, seed: int, traces: int, lookahead: int):
    jobs = [trace_job(trace, 1 + trace % 6, lookahead) for trace in range(traces)]
    closed = list(rollouts("sqlite://", RandomEngine(seed), model).run(jobs))
    assert sorted(map(jobs.index, closed)) == list(range(traces))
    for trace, job in enumerate(jobs):
        assert isinstance(job.plan, ForwardScanPlan)
        assert job.plan.crossing == expected_crossing(trace, 1 + trace % 6)


def test_only_samples_that_a_decision_needs_are_generated(model: Checkpoint):
    engine, jobs = RandomEngine(), [trace_job(trace, 6) for trace in range(20)]
    run = rollouts("sqlite://", engine, model)
    for _ in run.run(jobs):
        pass
    needed = sum(len(trial.outcomes) for job in jobs for trial in job.plan.tested.values())  # type: ignore[attr-defined]
    assert sum(engine.sampled.values()) == needed
    assert run.usage.generated_tokens == 2 * needed


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_after_a_crash_no_finished_completion_is_generated_again(
    model: Checkpoint, tmp_path_factory: pytest.TempPathFactory, crash_points: list[int]
):
    url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'db'}"
    kept: Counter[TokenIds] = Counter()
    for crash_point in crash_points:
        engine = RandomEngine(crash_point, crashes_after=crash_point)
        engine.sampled = kept.copy()
        with suppress(ConnectionError):
            list(rollouts(url, engine, model).run(trace_job(trace, 4) for trace in range(10)))
        kept = stored(url, model)
    engine = RandomEngine()
    engine.sampled = kept.copy()
    run = rollouts(url, engine, model)
    jobs = [trace_job(trace, 4) for trace in range(10)]
    assert len(list(run.run(jobs))) == 10
    assert stored(url, model) == engine.sampled  # nothing was sampled twice, nothing is missing
    for trace, job in enumerate(jobs):
        assert job.plan.crossing == expected_crossing(trace, 4)  # type: ignore[attr-defined]


def stored(url: str, model: Checkpoint) -> Counter[TokenIds]:
    """Number of stored samples of each prompt. Checks that their indices have no gaps."""
    prompts = [TokenIds((trace, prefix)) for trace in range(10) for prefix in range(4)]
    keys = {completion_key(model, Request(prompt, SAMPLING, 1), Purpose.PROBE, 0): prompt for prompt in prompts}
    stored_completions = RolloutStore(url).find(list(keys))
    for completions in stored_completions.values():
        assert [completion.token_ids[0] for completion in completions] == list(range(len(completions)))
    return Counter({keys[key]: len(completions) for key, completions in stored_completions.items() if completions})


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.stack)])
def test_two_concurrent_runs_share_the_work(
    backend: str, model: Checkpoint, tmp_path: Path, request: pytest.FixtureRequest
):
    url = f"sqlite:///{tmp_path / 'store'}" if backend == "sqlite" else request.getfixturevalue("postgres")()
    engines = [RandomEngine(seed) for seed in range(2)]
    engines[1].sampled = engines[0].sampled
    prompts = [TokenIds((trace, prefix)) for trace in range(30) for prefix in range(6)]

    def run(engine: RandomEngine) -> list[int | None]:
        plans = [trace_job(trace, 6) for trace in range(30)]
        list(rollouts(url, engine, model).run(plans))
        return [job.plan.crossing for job in plans]  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, engines))
    assert found == [[expected_crossing(trace, 6) for trace in range(30)]] * 2
    keys = {prompt: completion_key(model, Request(prompt, SAMPLING, 1), Purpose.PROBE, 0) for prompt in prompts}
    stored_completions = RolloutStore(url).find(list(keys.values()))
    assert {prompt: len(stored_completions[key]) for prompt, key in keys.items() if stored_completions[key]} == dict(
        engines[0].sampled
    )


class Relay:
    """A plan in which two models alternate: each continues from the other's samples."""

    def __init__(self, turns: int):
        self.turns_so_far: list[Any] = []
        self._turns, self._asked = turns, -1

    @property
    def is_open(self) -> bool:
        return len(self.turns_so_far) < self._turns

    def next_ranges(self) -> list[SampleRange]:
        if self._asked == len(self.turns_so_far) or not self.is_open:
            return []
        self._asked = len(self.turns_so_far)
        return [SampleRange(len(self.turns_so_far), 0, 1)]

    def add(self, ask: SampleRange, outcomes: Sequence[Any]) -> None:
        assert ask.prefix == len(self.turns_so_far)
        self.turns_so_far += outcomes


def test_a_plan_may_alternate_between_two_models(model: Checkpoint, tmp_path: Path):
    other = fake_checkpoint(tmp_path / "other", {"model.embed_tokens.weight": [6, 8]})
    engines, url = (RandomEngine(1), RandomEngine(2)), f"sqlite:///{tmp_path / 'db'}"

    def job(number: int) -> SamplingJob:
        plan = Relay(5)
        return SamplingJob(
            plan,
            lambda turn: TokenIds((number, *(c.token_ids[1] for c in plan.turns_so_far[:turn]))),
            SAMPLING,
            tuple,
            6,
            scheduler_index=lambda turn: turn % 2,
        )

    def run() -> tuple[list[Any], Usage]:
        jobs = [job(number) for number in range(100, 140)]
        pair = RolloutExecutor(
            RolloutStore(url),
            [EngineScheduler(engines[0], model), EngineScheduler(engines[1], other)],
            Purpose.PROBE,
            0,
        )
        assert len(list(pair.run(jobs))) == 40
        return [one.plan.turns_so_far for one in jobs], pair.usage  # type: ignore[attr-defined]

    turns_so_far, usage = run()
    for number, turns in enumerate(turns_so_far, start=100):
        prompts = [TokenIds((number, *(c.token_ids[1] for c in turns[:turn]))) for turn in range(5)]
        assert [engines[turn % 2].sampled[prompt] for turn, prompt in enumerate(prompts)] == [1] * 5
        assert [engines[1 - turn % 2].sampled[prompt] for turn, prompt in enumerate(prompts)] == [0] * 5
    assert engines[0].longest_queue > 1  # the jobs run concurrently
    assert usage.generated_tokens == 40 * 5 * 2
    again, reused = run()
    assert (again, reused.reused_completions, reused.generated_tokens) == (turns_so_far, 200, 0)


def test_stored_completions_open_no_session(model: Checkpoint, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'db'}"
    list(rollouts(url, RandomEngine(), model).run([trace_job(0, 4)]))

    class Closed(ScriptedEngine):
        def session(self, model: Any, deliver: Any) -> Any:
            raise AssertionError(f"nothing is missing for {model} and {deliver}")

    run = rollouts(url, Closed(lambda *_: Completion(TokenIds(), True)), model)
    (job,) = run.run([trace_job(0, 4)])
    assert job.plan.crossing == expected_crossing(0, 4)  # type: ignore[attr-defined]
    assert run.usage.reused_completions > 0
    assert run.usage.generated_tokens == 0


def test_a_refused_request_fails_only_its_job(model: Checkpoint):
    good, bad = (SamplingJob(FullEstimate(1, 2), lambda _, p=p: TokenIds((p,)), SAMPLING, right, 1) for p in (12, 13))
    closed = list(rollouts("sqlite://", RandomEngine(), model).run([bad, good]))
    assert set(closed) == {good, bad}
    assert good.failure is None
    assert bad.failure
    assert bad.failure.reason == "refused for the test"
    assert not good.plan.is_open
    first, second, third = rollouts("sqlite://", RandomEngine(), model).sample(
        [Request(TokenIds((n,)), SAMPLING, 2) for n in (12, 13, 14)]
    )
    assert isinstance(second, FailedRequest)
    assert [len(sampled) for sampled in (first, third) if not isinstance(sampled, FailedRequest)] == [2, 2]


class RefusingEngine(RandomEngine):
    """Refuses all prompts that begin with one of `numbers`."""

    def __init__(self, numbers: Sequence[int]):
        super().__init__()
        self._numbers = numbers

    def answer(self, request_id: int, request: Request) -> Finished | FailedRequest | BaseException:
        if request.prompt_ids[:1] and request.prompt_ids[0] in self._numbers:
            kind = Failure.TIMED_OUT if request.prompt_ids[0] % 2 else Failure.REFUSED
            return FailedRequest(request_id, f"number {request.prompt_ids[0]}", kind)
        return super().answer(request_id, request)


def run_with_failures(model: Checkpoint, engine: RandomEngine, total: int, share: float) -> list[SamplingJob]:
    failures = FailureBudget("probe prefixes", total, share)
    run = RolloutExecutor(
        RolloutStore("sqlite://"), [EngineScheduler(engine, model)], Purpose.PROBE, 0, failures=failures
    )
    return list(run.run([trace_job(trace, 3) for trace in range(total)]))


@pytest.mark.parametrize("numbers", [[], [3], [3, 8], [3, 8, 15, 16]])
def test_failed_jobs_do_not_affect_others(model: Checkpoint, numbers: list[int]):
    closed = run_with_failures(model, RefusingEngine(numbers), 20, 0.2)
    assert len(closed) == 20
    assert len([job for job in closed if job.failure]) == len(numbers)
    crossings = Counter(job.plan.crossing for job in closed if not job.failure)  # type: ignore[attr-defined]
    assert crossings == Counter(expected_crossing(trace, 3) for trace in range(20) if trace not in numbers)


def test_too_many_failures_end_the_run_with_reasons_and_counts(model: Checkpoint):
    with pytest.raises(TooManyFailed) as failure:
        run_with_failures(model, RefusingEngine([1, 2, 3, 5, 7]), 20, 0.2)
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith("probe prefixes: 5 of 20 failed, more than engine.max_failed_fraction (0.2) allows: ")
    assert "4 timed-out (number " in message
    assert "1 refused (number 2)" in message


@settings(max_examples=50)
@given(total=st.integers(1, 400), share=st.floats(0, 1))
def test_the_failure_limit_is_exact_but_allows_a_single_failure(total: int, share: float):
    failures = FailureBudget("stage", total, share)
    failures.add(Failure.REFUSED, "first")
    for count in range(2, total + 1):
        if count > share * total:
            with pytest.raises(TooManyFailed):
                failures.add(Failure.REFUSED, "another")
            return
        failures.add(Failure.REFUSED, "another")


def test_identical_requests_share_their_completions(model: Checkpoint):
    engine = RandomEngine()
    sampled = rollouts("sqlite://", engine, model).sample([Request(TokenIds((n,)), SAMPLING, 3) for n in (1, 2, 1)])
    assert sampled[0] == sampled[2] != sampled[1]
    assert engine.sampled == {TokenIds((1,)): 3, TokenIds((2,)): 3}


def test_a_scoring_error_ends_the_run(model: Checkpoint):
    def fails(completions: Sequence[Completion]) -> list[bool]:
        raise ValueError(f"cannot score {len(completions)}")

    job = SamplingJob(FullEstimate(1, 2), lambda _: TokenIds((1,)), SAMPLING, fails, 1)
    with pytest.raises(ValueError, match="cannot score 2"):
        list(rollouts("sqlite://", RandomEngine(), model).run([job]))


def test_jobs_are_admitted_only_while_they_fit_the_kv_cache(model: Checkpoint):
    """Each with its prompt and one completion of at most eight tokens, which takes two on average at first."""

    class Small(RandomEngine):
        cache_tokens = 20  # type: ignore[assignment]

    engine, short = Small(), Sampling(samples=1, max_tokens=8)
    jobs = [SamplingJob(FullEstimate(3, 1), lambda p, n=n: TokenIds((n, p)), short, right, 4) for n in range(12)]
    assert len(list(rollouts("sqlite://", engine, model).run(jobs))) == 12
    # Three jobs take 18; beside their prompts, four completions fit, and more as the mean length falls to two.
    assert 4 <= engine.longest_queue <= 6


def test_a_job_may_want_more_than_the_kv_cache_holds(model: Checkpoint):
    """Sixteen thoughts of five rollouts each: as many requests run as fit, of several jobs."""

    class Small(RandomEngine):
        cache_tokens = 1000  # type: ignore[assignment]

    engine, long = Small(), Sampling(samples=5, max_tokens=80)
    jobs = [SamplingJob(FullEstimate(16, 5), lambda p, n=n: TokenIds((n, p)), long, right, 100) for n in range(8)]
    scheduler = EngineScheduler(engine, model)
    run = RolloutExecutor(RolloutStore("sqlite://"), [scheduler], Purpose.PROBE, 0)
    assert len(list(run.run(jobs))) == 8
    # Each claims 100 + 5 · 20: five jobs are admitted; beside their prompts, five requests of five completions fit. As
    # the mean length falls, more do.
    assert engine.longest_queue >= 5
    assert not scheduler._admitted
    assert scheduler._claimed_tokens == scheduler._prompt_tokens == 0


@pytest.mark.parametrize(("length", "claimed"), [(4, 50 + 22), (1000, 50 + 400)])
def test_what_a_job_claims_follows_the_lengths_so_far(model: Checkpoint, length: int, claimed: int):
    """At first 200 of 400 tokens each, of which half are there at a time. With 320 completions of 4 tokens:
    (32·200 + 320·4) ÷ 352 = 21.8; of 1,000 tokens: 927, of which no more than 400 count."""
    scheduler = EngineScheduler(RandomEngine(), model)
    sampling = Sampling(samples=1, max_tokens=400)
    job = SamplingJob(FullEstimate(1, 2), lambda _: TokenIds(), sampling, tuple, 50)
    pending = PendingRequest(0, job, SampleRange(0, 0, 2), scheduler, Request(TokenIds(), sampling, 2), b"")
    assert scheduler._claim([pending]) == 50 + 200
    for _ in range(320):
        scheduler.account_sampled(pending, [length])
    assert scheduler._claim([pending]) == claimed


def test_as_many_jobs_are_open_as_the_engine_has_slots(model: Checkpoint):
    """As on eight GPUs with 256 slots each."""

    class Wide(RandomEngine):
        max_concurrency = 2048

    engine = Wide()
    jobs = (SamplingJob(FullEstimate(1, 1), lambda _, n=n: TokenIds((n,)), SAMPLING, right, 1) for n in range(2000))
    run = rollouts("sqlite://", engine, model)
    assert len(list(run.run(jobs))) == 2000
    assert engine.longest_queue > 512


def test_the_longest_job_is_first_and_its_shortest_prefix(model: Checkpoint):
    sampled: list[TokenIds] = []

    class Narrow(ScriptedEngine):
        max_concurrency = 1

    def script(_: Checkpoint, request: Request, number: int) -> Completion:
        sampled.append(request.prompt_ids)
        return Completion(TokenIds((1, 1)), True)

    jobs = [
        SamplingJob(FullEstimate(2, 1), lambda p, n=n: TokenIds((n, p)), SAMPLING, right, length)
        for n, length in enumerate((5, 9, 7))
    ]
    list(rollouts("sqlite://", Narrow(script), model).run(jobs))
    assert sampled == [TokenIds((n, p)) for n in (1, 2, 0) for p in (0, 1)]


def test_only_open_jobs_are_in_memory(model: Checkpoint):
    opened = 0

    def source() -> Iterator[SamplingJob]:
        nonlocal opened
        for trace in range(2000):
            opened += 1
            yield trace_job(trace, 1)

    run = rollouts("sqlite://", RandomEngine(), model).run(source())
    for done, _ in enumerate(run, start=1):
        assert opened - done <= 512
    assert opened == 2000


def test_usage_counts_the_prompt_tokens_that_each_sample_computed(model: Checkpoint):
    """Two requests of 70 tokens, 3 samples each, blocks of 32 tokens: 64 tokens are shared, so each sample computes at
    least 6. The engine reports 100 in all: 64 more than 6 × 6, which belong to first samples."""

    class Caching(ScriptedEngine):
        def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
            finished = super().serve(model, request_id, request)
            self.computed_prompt_tokens += 50 - len(request.prompt_ids) * request.count
            return finished

    run = rollouts("sqlite://", Caching(lambda *_: Completion(TokenIds((1, 2)), True)), model)
    run.sample([Request(TokenIds((n,) * 70), SAMPLING, 3) for n in range(2)])
    used = run.usage
    assert (used.prompt_tokens, used.prompt_tokens - used.cached_prompt_tokens) == (6 * 70, 100)
    assert used.generated_tokens == 12
    # 6 × (70 − 64 + 2) new tokens and, on average, 64 // 6 = 10 more a sample; by hand for the fake model's one layer
    shape = model.shape
    expected = 6 * shape.forward_flops(70, 64, 2) + 6 * (
        shape.forward_flops(70, 54, 0) - shape.forward_flops(70, 64, 0)
    )
    assert used.flops == pytest.approx(expected)


def test_a_reused_completion_is_priced_as_if_sampled(model: Checkpoint):
    """Prompts of 40, 72 and 104 tokens, each a prefix of the next, two samples of two tokens each, blocks of 32. A
    second job has the same prompts; a third shares only the first 40 tokens."""
    store, traces = RolloutStore("sqlite://"), (range(104), range(104), [*range(40), *range(200, 264)])

    def run() -> Usage:
        def jobs() -> Iterator[SamplingJob]:
            for ids in map(TokenIds, traces):
                yield SamplingJob(
                    FullEstimate(3, 2), lambda prefix, ids=ids: ids[: 40 + 32 * prefix], SAMPLING, right, 104
                )

        rollouts = RolloutExecutor(
            store,
            [EngineScheduler(ScriptedEngine(lambda *_: Completion(TokenIds((1, 2)), True)), model)],
            Purpose.PROBE,
            0,
        )
        list(rollouts.run(jobs()))
        return rollouts.usage

    assert run().generated_tokens == 20
    again = run()
    assert (again.generated_tokens, again.reused_completions) == (0, 18)
    # A first sample finds the full blocks of the shorter prompt; a second those of its own prompt.
    firsts, seconds = ((40, 0), (72, 32), (104, 64)), ((40, 32), (72, 64), (104, 96))
    expected_flops = sum(model.shape.forward_flops(prompt, cached, 2) for prompt, cached in firsts + seconds)
    expected_flops += sum(model.shape.forward_flops(prompt, cached, 2) for prompt, cached in firsts[1:] + seconds[1:])
    assert again.reused_flops == pytest.approx(expected_flops)


def test_completions_that_another_run_stored_first_are_counted(model: Checkpoint):
    class Overtaken(RolloutStore):
        def commit(self, rows: Sequence[StoredCompletion]) -> bool:
            super().commit(rows)
            return False

    rollouts = RolloutExecutor(Overtaken("sqlite://"), [EngineScheduler(RandomEngine(), model)], Purpose.PROBE, 0)
    rollouts.sample([Request(TokenIds((n,) * 40), SAMPLING, 2) for n in range(3)])
    assert (rollouts.usage.generated_tokens, rollouts.usage.reused_completions) == (0, 6)
    assert rollouts.usage.reused_flops > 0


def test_utilisation_clock():
    times = iter([0.0, 1.0, 3.0, 4.0, 9.0, 10.0])
    clock = UtilisationClock(slots=4, now=lambda: next(times))
    for slots in (4, 1, 0, 3, 1, 0):  # full 0–1, tail 1–3, idle 3–4, full 4–9, tail 9–10
        clock.set_running(slots)
    used = clock.usage
    assert (used.engine_busy, used.engine_idle, used.engine_tail) == (9.0, 1.0, 1.0)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_jobs_come_back_in_order_each_with_what_came_with_it(prefixes: list[int], seed: int):
    """Also jobs without a prefix, which are done at once, and one that is refused."""

    def job(number: int, count: int) -> SamplingJob:
        return SamplingJob(
            FullEstimate(count, 2), lambda _: TokenIds((13 if number == 3 else 20 + number,)), SAMPLING, tuple, 1
        )

    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(f"sqlite:///{folder}/store")
        model = fake_checkpoint(Path(folder))
        executor = RolloutExecutor(store, [EngineScheduler(RandomEngine(seed), model)], Purpose.PROBE, 0)
        done = list(executor.run_in_order((n, job(n, count)) for n, count in enumerate(prefixes)))
        store.close()
    assert [number for number, _ in done] == list(range(len(prefixes)))
    assert all(bool(one.failure) == (number == 3 and prefixes[3] > 0) for number, one in done)


def test_no_job_is_opened_far_behind_one_that_is_still_open(
    tmp_path: Path, model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    """The first job waits until the others that may be opened are done."""
    monkeypatch.setattr(rollout_executor, "MAX_LEAD", 5)
    opened, opened_meanwhile = list[int](), list[int]()
    held: list[tuple[Deliver, int, Request]] = []

    class HoldsTheFirst(ScriptedEngine):
        @contextmanager
        def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
            engine = self

            class Held:
                def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
                    if affinity_key == 0:
                        held.append((deliver, request_id, request))
                        return
                    deliver(engine.serve(model, request_id, request))
                    if affinity_key == 4:
                        opened_meanwhile.extend(opened)
                        first, name, waiting = held.pop()
                        first(engine.serve(model, name, waiting))

            yield Held()

    def jobs() -> Iterator[SamplingJob]:
        for number in range(20):
            opened.append(number)
            yield SamplingJob(FullEstimate(1, 1), lambda _, n=number: TokenIds((n,)), SAMPLING, tuple, 1)

    engine = HoldsTheFirst(lambda *_: Completion(TokenIds((1,)), True))
    store = RolloutStore(f"sqlite:///{tmp_path / 'store'}")
    executor = RolloutExecutor(store, [EngineScheduler(engine, model)], Purpose.PROBE, 0)
    assert len(list(executor.run(jobs()))) == 20
    assert opened_meanwhile == [0, 1, 2, 3, 4]
    store.close()


@given(st.lists(st.integers(0, 2**32 - 1), max_size=70), st.lists(st.integers(0, 2**32 - 1), max_size=70))
def test_block_names_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int]):
    scheduler = EngineScheduler(RandomEngine(), Checkpoint(Path(), ""))
    size = scheduler.engine.block
    first, second = (scheduler._blocks(TokenIds(ids)) for ids in (one, other))
    assert len(first) == len(one) // size
    for index, pair in enumerate(zip(first, second, strict=False)):
        end = (index + 1) * size
        assert (pair[0] == pair[1]) == (one[:end] == other[:end])
    assert scheduler._blocks(TokenIds(one + other))[: len(first)] == first
