"""The endpoint of two models with several processes, as OpenAI's client and curl see it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from conf.long_short import LongShort
from models.checkpoints.checkpoint import TINY_MODEL
from reasoning.dialogue import Speaker
from tests.models.spoken import PROTOCOL, Vllm, answer, think

ROOT = Path(__file__).parent.parent.parent
KEY = "let me in"
ASK: Any = {"model": "long-short", "messages": [{"role": "user", "content": "Ann has 4."}]}
WORKERS = 2


class Endpoint:
    """A running `brevity serve`."""

    def __init__(self, folder: Path, servers: list[Vllm]):
        (folder / "model_pair.json").write_text(json.dumps(dict.fromkeys(Speaker, str(TINY_MODEL))))
        (folder / "config.json").write_text(LongShort(protocol=PROTOCOL).model_dump_json())
        command = [sys.executable, "-m", "flows", "serve", "long-short", "--model", str(folder), "--port", "0"]
        command += ["--host", "0.0.0.0", "--workers", str(WORKERS), "--servers", *(server.url for server in servers)]
        environment = os.environ | {"BREVITY_SERVE_KEY": KEY}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        port = self.process.stdout.readline().split("/v1")[0].rpartition(":")[2]
        self.url = f"http://127.0.0.1:{port}/v1"

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def answering(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    servers = [Vllm(think), Vllm(answer)]
    running = Endpoint(tmp_path, servers)
    yield running
    running.process.kill()
    running.process.communicate()
    for server in servers:
        server.close()


def replies(endpoint: Endpoint, count: int) -> set[str | None]:
    def ask(_: int) -> str | None:
        return endpoint.client().chat.completions.create(**ASK).choices[0].message.content

    with ThreadPoolExecutor(count) as pool:
        return set(pool.map(ask, range(count)))


def test_several_processes_answer_and_end_together(endpoint: Endpoint):
    assert replies(endpoint, 16) == {"The answer is \\boxed{4}."}
    processes = endpoint.answering()
    assert len(processes) == WORKERS
    processes[0].kill()
    processes[0].wait(120)  # until its parent has seen it
    assert replies(endpoint, 4) == {"The answer is \\boxed{4}."}
    left = psutil.Process(endpoint.process.pid).children(recursive=True)
    endpoint.process.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(left, 120)[1] == []


def test_who_has_no_key_is_not_let_in(endpoint: Endpoint):
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        endpoint.client("guessed").chat.completions.create(**ASK)
    with pytest.raises(openai.AuthenticationError):
        endpoint.client("guessed").models.list()
    assert [model.id for model in endpoint.client().models.list()] == ["long-short"]
    root = endpoint.url.removesuffix("/v1")
    body = json.dumps(ASK | {"temperature": None, "max_tokens": 200, "user": "curl"})
    headers = ["--header", f"Authorization: Bearer {KEY}", "--header", "Content-Type: application/json"]
    command = ["curl", "--silent", "--include", *headers, "--data", body, f"{root}/v1/chat/completions"]
    head, _, reply = subprocess.check_output(command, text=True).replace("\r", "").partition("\n\n")
    assert "x-brevity-ignored: user" in head
    assert json.loads(reply)["choices"][0]["message"]["content"] == "The answer is \\boxed{4}."
    health = subprocess.check_output(["curl", "--silent", f"{root}/health"])
    assert json.loads(health) == {"status": "ok"}
