"""Whether the rollout engine survives what happens to real servers. Prints what it saw, ends with an error if not.

    python -m bench.faults kills      # SIGKILL of a run's whole process group, twenty times
    python -m bench.faults servers    # two servers elsewhere; one is killed half-way, and later brought back

Needs the traces of `bench.rollouts`, and draws them where they are not stored yet.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx

from bench.rollouts import Case, Question, Recording, play, questions, start
from conf.engine import Engine
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_engine import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore, completion_key
from models.inference.scheduler import EngineScheduler, PendingRequest
from models.inference.vllm_server import on_cpu
from models.processes import GuardedProcess
from reasoning.sampling_plans import Outcomes, SampleRange

TRACES = 200
KILLS = 20
WHILE_STARTING = 4
"""Kills that come at any moment since the start; the others come when the run is drawing."""
LONGEST_START, LONGEST_DRAWING = 30.0, 1.2
"""Seconds after which a kill comes at the latest: since the start, or since something was stored."""
SEATS = 64
"""Few, so that the run is long enough to be killed so often while it draws."""


class Logged(EngineScheduler):
    """Writes down which samples it asks for, before it does."""

    log: Path

    def send(self, ticket: int, draw: PendingRequest) -> None:
        first = draw.ask.first + len(draw.completions)
        with self.log.open("a") as file:
            file.write(json.dumps([draw.key.hex(), first, draw.missing]) + "\n")
        super().submit(ticket, draw)


def run(url: str, log: Path) -> None:
    """One run, which may be killed: it says when something is stored, and its crossings at the end."""

    def progress(_: int, tokens: int) -> None:
        if tokens:
            print(f"stored {tokens} tokens", flush=True)

    model = Checkpoint.open(TINY_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        server = Recording(Engine(max_num_seqs=SEATS), Path(folder) / "vllm.log")
        server.asked = []
        try:
            start(server, model)
            question = crossing(server, model)
            plans = [question.plan(len(case.ends)) for case in question.cases]
            scheduler = Logged(server, model)
            scheduler.log = log
            rollouts = RolloutExecutor(RolloutStore(url), [scheduler], Purpose.PROBE, 0, progress)
            list(rollouts.run(question.job(case, plan) for case, plan in zip(question.cases, plans, strict=True)))
        finally:
            server.close()
    print(json.dumps([plan.crossing for plan in plans]))


def crossing(server: Recording, model: Checkpoint) -> Question:
    return questions(server, model, TRACES, 2)["crossing"]


def stored(url: str, question: Question) -> dict[str, list[Completion]]:
    """All samples of all prefixes, by their key."""
    keys = [key_of(question, prompt) for prompt in question.prompts()]
    return {key.hex(): held for key, held in RolloutStore(url).find(keys).items()}


def key_of(question: Question, prompt: tuple[int, ...]) -> bytes:
    return completion_key(question.model, Request(prompt, question.sampling, 1), Purpose.PROBE, 0)


def replayed(question: Question, samples: dict[str, list[Completion]]) -> list[int | None]:
    """The crossings that stored samples give."""

    def outcomes(case: Case, ask: SampleRange) -> Outcomes:
        group = samples[key_of(question, question.prompt(case, ask.prefix)).hex()][ask.first : ask.first + ask.count]
        assert len(group) == ask.count, "a sample that decided is not stored"
        return question.judge(case, [completion.token_ids for completion in group])

    plans = [question.plan(len(case.ends)) for case in question.cases]
    for case, plan in zip(question.cases, plans, strict=True):
        play(plan, partial(outcomes, case))
    return [plan.crossing for plan in plans]


def kills() -> None:
    model, luck = Checkpoint.open(TINY_MODEL), random.Random(20)
    with tempfile.TemporaryDirectory() as folder:
        url, log = f"sqlite:///{folder}/store", Path(folder) / "log"
        log.touch()
        server = Recording(Engine(), Path(folder) / "vllm.log")
        question = crossing(server, model)
        server.close()
        before, read, said = stored(url, question), 0, ""
        for number in range(KILLS + 1):
            delay = None if number == KILLS else luck.uniform(0, 1)
            said = killed(url, log, delay, number < WHILE_STARTING)
            asked = [json.loads(line) for line in log.read_text().splitlines()]
            again = sum(first < len(before[key]) for key, first, _ in asked[read:])
            after = stored(url, question)
            changed = sum(after[key][: len(group)] != group for key, group in before.items())
            new = sum(map(len, after.values())) - sum(map(len, before.values()))
            sent = sum(count for _, _, count in asked[read:])
            print(f"{number}: sent {sent}, stored {new}, drawn again {again}, changed {changed}", flush=True)
            assert not again
            assert not changed
            assert delay is not None or sent == new, "an uninterrupted run lost something"
            before, read = after, len(asked)
        assert json.loads(said) == replayed(question, before)
        print(f"{len(question.cases)} decisions are those that {sum(map(len, before.values()))} stored samples give")


def killed(url: str, log: Path, delay: float | None, while_starting: bool) -> str:
    """A run that is killed after `delay`, a share of the longest; None: not at all. Returns its last line."""
    command = [sys.executable, "-m", "bench.faults", "run", url, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        if delay is not None:
            if while_starting:
                time.sleep(delay * LONGEST_START)
            else:
                assert process.stdout.readline().startswith("stored")
                time.sleep(delay * LONGEST_DRAWING)
            os.killpg(process.pid, signal.SIGKILL)
        *_, last = ["", *process.stdout.read().splitlines()]
    assert process.returncode == (0 if delay is None else -signal.SIGKILL), "it ended before it could be killed"
    return last


def served(model: Checkpoint, port: int, log: Path) -> GuardedProcess:
    """A server as its owner would start it, under the model's fingerprint."""
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model.folder),
        "--served-model-name",
        model.fingerprint,
        "--port",
        str(port),
        "--enable-prefix-caching",
        "--max-num-seqs",
        str(SEATS),
        "--dtype",
        "float32",
        "--max-model-len",
        "2048",
        "--generation-config",
        "vllm",
    ]
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    if on_cpu():
        command += ["--block-size", "32", "--enforce-eager", "--distributed-executor-backend", "uni"]
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    return GuardedProcess([*command, "--host", "127.0.0.1"], log, environment)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(ports: Sequence[int]) -> None:
    deadline = time.monotonic() + 300
    for port in ports:
        while not is_well(port):
            assert time.monotonic() < deadline, f"the server on port {port} does not get ready"
            time.sleep(0.5)


def is_well(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


def finished_by(port: int) -> int:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total")))


def servers() -> None:
    model, ports = Checkpoint.open(TINY_MODEL), free_ports(2)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        own = Recording(Engine(), folder / "own.log")
        question = crossing(own, model)
        own.close()
        both = [served(model, port, folder / f"{port}.log") for port in ports]
        for process in both:
            stack.callback(process.end)
        wait_for(ports)
        engine = RemoteServers(
            Engine(endpoints=tuple(f"http://127.0.0.1:{port}" for port in ports), max_num_seqs=SEATS)
        )
        plans = [question.plan(len(case.ends)) for case in question.cases]
        jobs = [question.job(case, plan) for case, plan in zip(question.cases, plans, strict=True)]
        url = f"sqlite:///{folder / 'store'}"
        closed, begun = 0, time.monotonic()

        def note(what: str) -> None:
            told = ", ".join(str(finished_by(port)) if is_well(port) else "gone" for port in ports)
            print(f"{time.monotonic() - begun:6.1f} s: {what}; {closed} closed; finished by each: {told}", flush=True)

        def bring_back() -> None:
            stack.callback(served(model, ports[0], folder / "again.log").end)
            wait_for(ports[:1])
            note("the first server is back")

        helper = threading.Thread(target=bring_back)
        for job in RolloutExecutor(RolloutStore(url), [EngineScheduler(engine, model)], Purpose.PROBE, 0).run(jobs):
            assert not job.refused, job.refused
            closed += 1
            if closed == len(jobs) // 4:
                note("the first server is killed")
                os.killpg(both[0].pid, signal.SIGKILL)
                helper.start()
        helper.join()
        note("all closed")
        assert [plan.crossing for plan in plans] == replayed(question, stored(url, question))
        print("decisions are those that the stored samples give")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        {"kills": kills, "servers": servers}[sys.argv[1]]()
