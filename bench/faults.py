"""Fault injection for the rollout executor. Prints what happened; ends with an error if a check fails.

    python -m bench.faults kills      # SIGKILL of a run's process group, twenty times
    python -m bench.faults servers    # two remote servers; one is killed half-way and later restarted

Uses the traces of `bench.rollouts`, and samples them if they are not stored yet.
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
from models.inference.devices import on_cpu
from models.inference.engine import Completion, Request
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore, completion_key
from models.inference.scheduler import EngineScheduler, PendingRequest
from models.processes import GuardedProcess
from reasoning.sampling_plans import Outcomes, SampleRange
from reasoning.token_ids import TokenIds

TRACES = 200
KILLS = 20
KILLS_AT_START = 4
"""Number of kills at any time after the start; the others come while the run is sampling."""
LATEST_KILL_STARTING, LATEST_KILL_SAMPLING = 30.0, 1.2
"""Latest time of a kill in seconds, after the start or after the first stored completion."""
SLOTS = 64
"""Few slots, so that the run lasts long enough for all kills."""


class Logged(EngineScheduler):
    """Logs the samples of each request before it is sent."""

    log: Path

    def submit(self, request_id: int, pending: PendingRequest) -> None:
        first = pending.sample_range.first + len(pending.completions)
        with self.log.open("a") as file:
            file.write(json.dumps([pending.key.hex(), first, pending.missing]) + "\n")
        super().submit(request_id, pending)


def run(url: str, log: Path) -> None:
    """One run, which may be killed. Prints a line for each commit, and its crossings at the end."""

    def progress(_: int, tokens: int) -> None:
        if tokens:
            print(f"stored {tokens} tokens", flush=True)

    model = Checkpoint.open(TINY_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        server = Recording(Engine(max_num_seqs=SLOTS), Path(folder) / "vllm.log")
        server.recorded = []
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
    """All stored samples of all prefixes, by key."""
    keys = [key_of(question, prompt) for prompt in question.prompts()]
    return {key.hex(): held for key, held in RolloutStore(url).find(keys).items()}


def key_of(question: Question, prompt: TokenIds) -> bytes:
    return completion_key(question.model, Request(prompt, question.sampling, 1), Purpose.PROBE, 0)


def replayed(question: Question, samples: dict[str, list[Completion]]) -> list[int | None]:
    """The crossings that follow from stored samples."""

    def outcomes(case: Case, sample_range: SampleRange) -> Outcomes:
        group = samples[key_of(question, question.prompt(case, sample_range.prefix)).hex()][
            sample_range.first : sample_range.first + sample_range.count
        ]
        assert len(group) == sample_range.count, "a sample that a decision used is not stored"
        return question.score(case, [completion.token_ids for completion in group])

    plans = [question.plan(len(case.ends)) for case in question.cases]
    for case, plan in zip(question.cases, plans, strict=True):
        play(plan, partial(outcomes, case))
    return [plan.crossing for plan in plans]


def kills() -> None:
    model, rng = Checkpoint.open(TINY_MODEL), random.Random(20)
    with tempfile.TemporaryDirectory() as folder:
        url, log = f"sqlite:///{folder}/store", Path(folder) / "log"
        log.touch()
        server = Recording(Engine(), Path(folder) / "vllm.log")
        question = crossing(server, model)
        server.close()
        before, read, last_line = stored(url, question), 0, ""
        for number in range(KILLS + 1):
            delay = None if number == KILLS else rng.uniform(0, 1)
            last_line = killed(url, log, delay, number < KILLS_AT_START)
            requests = [json.loads(line) for line in log.read_text().splitlines()]
            again = sum(first < len(before[key]) for key, first, _ in requests[read:])
            after = stored(url, question)
            changed = sum(after[key][: len(group)] != group for key, group in before.items())
            new = sum(map(len, after.values())) - sum(map(len, before.values()))
            sent = sum(count for _, _, count in requests[read:])
            print(f"{number}: sent {sent}, stored {new}, sampled again {again}, changed {changed}", flush=True)
            assert not again
            assert not changed
            assert delay is not None or sent == new, "an uninterrupted run lost something"
            before, read = after, len(requests)
        assert json.loads(last_line) == replayed(question, before)
        print(f"{len(question.cases)} decisions follow from the {sum(map(len, before.values()))} stored samples")


def killed(url: str, log: Path, delay: float | None, at_start: bool) -> str:
    """Runs a process and kills it after `delay`, a fraction of the latest time; None: no kill. Returns its last
    line."""
    command = [sys.executable, "-m", "bench.faults", "run", url, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        if delay is not None:
            if at_start:
                time.sleep(delay * LATEST_KILL_STARTING)
            else:
                assert process.stdout.readline().startswith("stored")
                time.sleep(delay * LATEST_KILL_SAMPLING)
            os.killpg(process.pid, signal.SIGKILL)
        *_, last = ["", *process.stdout.read().splitlines()]
    assert process.returncode == (0 if delay is None else -signal.SIGKILL), "it ended before it was killed"
    return last


def served(model: Checkpoint, port: int, log: Path) -> GuardedProcess:
    """Starts a server as its owner would, under the model's fingerprint."""
    command = [
        sys.executable,
        "-m",
        "models.inference.vllm_main",
        "--model",
        str(model.folder),
        "--served-model-name",
        model.fingerprint,
        "--port",
        str(port),
        "--enable-prefix-caching",
        "--max-num-seqs",
        str(SLOTS),
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
        while not is_healthy(port):
            assert time.monotonic() < deadline, f"the server on port {port} did not start"
            time.sleep(0.5)


def is_healthy(port: int) -> bool:
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
            Engine(endpoints=tuple(f"http://127.0.0.1:{port}" for port in ports), max_num_seqs=SLOTS)
        )
        plans = [question.plan(len(case.ends)) for case in question.cases]
        jobs = [question.job(case, plan) for case, plan in zip(question.cases, plans, strict=True)]
        url = f"sqlite:///{folder / 'store'}"
        closed, started = 0, time.monotonic()

        def log_state(what: str) -> None:
            finished = ", ".join(str(finished_by(port)) if is_healthy(port) else "down" for port in ports)
            print(
                f"{time.monotonic() - started:6.1f} s: {what}; {closed} closed; finished by each: {finished}",
                flush=True,
            )

        def bring_back() -> None:
            stack.callback(served(model, ports[0], folder / "again.log").end)
            wait_for(ports[:1])
            log_state("the first server is back")

        helper = threading.Thread(target=bring_back)
        for job in RolloutExecutor(RolloutStore(url), [EngineScheduler(engine, model)], Purpose.PROBE, 0).run(jobs):
            assert not job.failure, job.failure
            closed += 1
            if closed == len(jobs) // 4:
                log_state("the first server is killed")
                os.killpg(both[0].pid, signal.SIGKILL)
                helper.start()
        helper.join()
        log_state("all closed")
        assert [plan.crossing for plan in plans] == replayed(question, stored(url, question))
        print("decisions follow from the stored samples")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        {"kills": kills, "servers": servers}[sys.argv[1]]()
