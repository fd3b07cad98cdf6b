"""The rollout engine against doing it plainly, on one vLLM server in one run, and against the floor.

    python -m bench.rollouts          # 5 rounds, medians, to bench/results/rollouts.json

Traces: right ones of the bundled model, lengthened to 16 segments and more by joining re-checks that others of the same
problem went through, so that they cross late. A second set never crosses (its right answer is another). Modes:

- naive: every prefix × k, each rollout a request of its own that shares nothing (a `cache_salt` each)
- naive_cached: every prefix × k, k rollouts a request, in order, the prefix cache on
- ours: the rollout engine
- raw: the requests that ours made, given to the server all at once
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from conf.settings import Engine, Probing, Sampling, Segmentation
from models.checkpoint import TINY_MODEL, Checkpoint
from models.dispatch import IDLE_CONNECTION
from models.engine import Deliver, Request, Session
from models.rollouts import Job, Rollouts
from models.store import Purpose, RolloutStore
from models.vllm_server import VllmServer
from reasoning.answers import CLOSE_THINK, final_answer, plain_number, until_closing_brace
from reasoning.rollouts import EarliestCrossing, bill, enough, right_ones
from reasoning.segment import segment_text
from reasoning.stories import Split, draw_stories
from tasks.problems import story_problem

RESULT = Path(__file__).parent / "results" / "rollouts.json"
MODES = ("naive", "naive_cached", "ours", "raw")
SEGMENTS = 16
PROBING = Probing()
K = PROBING.sampling.samples
LONGEST = 1700
"""Tokens of a joined trace; the model's context is 2,048."""


class Case:
    """One trace: its prompt, the token ends of its segments, and its right answer."""

    def __init__(self, prompt: tuple[int, ...], ids: tuple[int, ...], ends: Sequence[int], answer: str):
        self.prompt, self.ids, self.ends, self.answer = prompt, ids, ends, answer

    def lengths(self) -> list[int]:
        return [len(self.prompt) + end for end in self.ends]


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

    def submit(self, ticket: int, request: Request, near: int) -> None:
        self._asked.append(request)
        self._session.submit(ticket, request, near)


def cases(server: VllmServer, model: Checkpoint, count: int, crossing: bool) -> list[Case]:
    """Long traces; with `crossing` they end in the right answer, otherwise no answer of theirs is called right."""
    stories = draw_stories(Split.HELDOUT, 0, 6 * count, (6, 7, 8))
    problems = [story_problem(story, Split.HELDOUT, 0, index) for index, story in enumerate(stories)]
    prompts = [model.prompt_ids(problem) for problem in problems]
    store = RolloutStore("sqlite://")
    drawn = Rollouts(store, server, model, Purpose.TRAIN, 0).draw(
        [Request(prompt, Sampling(samples=12), 12) for prompt in prompts]
    )
    found: list[Case] = []
    for problem, prompt, completions in zip(problems, prompts, drawn, strict=True):
        texts = [model.decode(completion.token_ids) for completion in completions if completion.finished]
        joined = _joined(texts, problem.answer)
        if joined is None:
            continue
        segments = segment_text(joined, Segmentation().markers, Segmentation().min_chars)
        pieces = [model.encode(segment) for segment in segments]
        ids = tuple(token for piece in pieces for token in piece)
        ends = [sum(map(len, pieces[: index + 1])) for index in range(len(pieces))]
        if len(ids) <= LONGEST and len(found) < count:
            found.append(Case(prompt, ids, ends, problem.answer if crossing else "-1"))
    return found


def _joined(texts: Sequence[str], answer: str) -> str | None:
    """The thinking of wrong traces and then of a right one as a single thinking; None where it stays too short."""
    markers = Segmentation().markers
    right = [text for text in texts if final_answer(text) == answer]
    wrong = [text for text in texts if final_answer(text) != answer]
    if not right:
        return None
    first, *others = [*wrong, right[0]]
    segments = segment_text(first.split(CLOSE_THINK)[0], markers, 12)
    for text in others:
        segments += segment_text(text.split(CLOSE_THINK)[0], markers, 12)[1:]
    return "".join(segments) if len(segments) >= SEGMENTS else None


def judge_of(model: Checkpoint, case: Case) -> Any:
    gold = plain_number(case.answer)

    def judge(completions: Sequence[Any]) -> list[bool]:
        texts = [until_closing_brace(model.decode(completion.token_ids)) for completion in completions]
        return [text is not None and plain_number(text) == gold for text in texts]

    return judge


def ours(server: Recording, model: Checkpoint, cases: Sequence[Case], seed: int) -> dict[str, Any]:
    server.asked = []
    store, exit_ids = RolloutStore("sqlite://"), model.encode(PROBING.exit_text)
    plans = [EarliestCrossing(len(case.ends), K, PROBING.threshold) for case in cases]
    jobs = [
        Job(
            plan, lambda index, case=case: case.prompt + case.ids[: case.ends[index]] + exit_ids, PROBING.sampling,
            judge_of(model, case), len(case.prompt) + len(case.ids) + len(exit_ids),
        )
        for plan, case in zip(plans, cases, strict=True)
    ]  # fmt: skip
    rollouts = Rollouts(store, server, model, Purpose.PROBE, seed)
    started = time.monotonic()
    for _ in rollouts.run(jobs):
        pass
    seconds = time.monotonic() - started
    bills = [
        bill(plan, case.lengths(), len(exit_ids), K, server.block) for plan, case in zip(plans, cases, strict=True)
    ]
    generated = rollouts.usage.generated_tokens
    drawn = sum(one.rollouts for one in bills)
    needed = sum(one.rollouts_floor for one in bills)
    return {
        "seconds": seconds, "generated_tokens": generated,
        "idle_share": rollouts.usage.engine_idle / (rollouts.usage.engine_busy + rollouts.usage.engine_idle),
        "floor": {
            "generated_tokens": generated * needed / drawn,
            "prefill_tokens": sum(one.prefill_floor for one in bills),
        },
        "crossings": [plan.crossing for plan in plans],
    }  # fmt: skip


async def flood(url: str, bodies: Sequence[dict[str, Any]], seats: int) -> list[dict[str, Any]]:
    """All replies; as many completions in flight as the engine has seats."""
    room = asyncio.Semaphore(seats)
    limits = httpx.Limits(max_connections=seats, keepalive_expiry=IDLE_CONNECTION)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            try:
                reply = await client.post("/v1/completions", json=body)
                reply.raise_for_status()
                return reply.json()
            finally:
                for _ in range(body["n"]):
                    room.release()

        tasks = []
        for body in bodies:
            for _ in range(body["n"]):
                await room.acquire()
            tasks.append(asyncio.create_task(one(body)))
        return await asyncio.gather(*tasks)


def plainly(server: VllmServer, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    started = time.monotonic()
    replies = asyncio.run(flood(server.url, bodies, server.seats))
    seconds = time.monotonic() - started
    tokens = [[choice["token_ids"] for choice in sorted(r["choices"], key=lambda c: c["index"])] for r in replies]
    return {"seconds": seconds, "generated_tokens": sum(len(t) for group in tokens for t in group), "tokens": tokens}


def body_of(prompt: Sequence[int], count: int, **more: Any) -> dict[str, Any]:
    sampling = PROBING.sampling
    return {
        "model": "policy", "prompt": list(prompt), "n": count, "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "return_token_ids": True, **more,
    }  # fmt: skip


def computed(server: VllmServer) -> float:
    """Prompt tokens that the server has looked up in its cache and not found, since it started."""
    text = httpx.get(f"{server.url}/metrics").text

    def counter(name: str) -> float:
        return sum(
            float(value) for value in re.findall(rf"^vllm:{name}(?:_total)?{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        )

    return counter("prefix_cache_queries") - counter("prefix_cache_hits")


def fresh(server: VllmServer) -> None:
    httpx.post(f"{server.url}/reset_prefix_cache").raise_for_status()


def measure(server: Recording, model: Checkpoint, cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """One round of all modes."""
    exit_ids = model.encode(PROBING.exit_text)
    prompts = [case.prompt + case.ids[:end] + exit_ids for case in cases for end in case.ends]
    result: dict[str, Any] = {}
    for mode in MODES:
        fresh(server)
        before = computed(server)
        if mode == "naive":
            salted = [body_of(p, 1, cache_salt=f"{seed}-{i}-{n}") for i, p in enumerate(prompts) for n in range(K)]
            result[mode] = plainly(server, salted)
            # A salted prompt is computed whole, whatever the server's counters say of it.
            result[mode]["prefill_tokens"] = K * sum(map(len, prompts))
            continue
        if mode == "naive_cached":
            result[mode] = plainly(server, [body_of(prompt, K) for prompt in prompts])
            result["decisions_equal"] = replayed(model, cases, result[mode].pop("tokens"))
        elif mode == "ours":
            result[mode] = ours(server, model, cases, seed)
        else:
            result[mode] = plainly(server, [body_of(r.prompt_ids, r.count) for r in server.asked])
        result[mode]["prefill_tokens"] = computed(server) - before
    for mode in MODES:
        result[mode].pop("tokens", None)
    return result


def replayed(model: Checkpoint, cases: Sequence[Case], tokens: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Whether plans decide on the k samples of every prefix as counting all of them does."""
    groups = iter(tokens)
    for case in cases:
        gold, rows = plain_number(case.answer), []
        for _ in case.ends:
            texts = [until_closing_brace(model.decode(tuple(ids))) for ids in next(groups)]
            rows.append([text is not None and plain_number(text) == gold for text in texts])
        plan = EarliestCrossing(len(rows), K, PROBING.threshold)
        while asks := plan.asks():
            for ask in asks:
                plan.add(ask, rows[ask.prefix][ask.first : ask.first + ask.count])
        needed = enough(K, PROBING.threshold)
        if plan.crossing != next((i for i, row in enumerate(rows) if right_ones(row) >= needed), None):
            return False
    return True


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        mode: {
            name: median(r[mode][name] for r in rounds) for name in ("generated_tokens", "prefill_tokens", "seconds")
        }
        for mode in MODES
    }
    figures["floor"] = {
        name: median(r["ours"]["floor"][name] for r in rounds) for name in ("generated_tokens", "prefill_tokens")
    }
    figures["decisions_equal"] = all(r["decisions_equal"] for r in rounds)
    figures["engine_idle_share"] = median(r["ours"]["idle_share"] for r in rounds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--traces", type=int, default=40)
    options = parser.parse_args()
    model = Checkpoint.open(TINY_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        server = Recording(Engine(), Path(folder) / "vllm.log")
        server.asked = []
        try:
            figures: dict[str, Any] = {}
            for name, crossing in (("crossing", True), ("never_crossing", False)):
                found = cases(server, model, options.traces, crossing)
                print(f"{name}: {len(found)} traces, {median(len(case.ends) for case in found)} segments", flush=True)
                rounds = []
                for seed in range(options.rounds):
                    rounds.append(measure(server, model, found, seed))
                    print(
                        f"  round {seed}: " + ", ".join(f"{m} {rounds[-1][m]['seconds']:.1f} s" for m in MODES),
                        flush=True,
                    )
                figures[name] = medians(rounds) | {"traces": len(found)}
        finally:
            server.close()
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    result = figures.pop("crossing") | figures | {
        "rounds": options.rounds, "k": K, "hardware": platform.processor() or platform.machine(), "commit": commit,
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
