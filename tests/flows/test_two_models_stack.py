"""Long⊗Short on the real Prefect, vLLM and TRL: cold start of two models, one round of GRPO, and serving."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from conf.load import load
from conf.long_short import LongShort
from flows.long_short import long_short
from tests.flows.real_runs import Shapes, long_short_changes, stages
from tests.flows.world import assist
from tests.models.chat import Chat

pytestmark = pytest.mark.usefixtures("prefect")
ROOT = Path(__file__).parent.parent.parent
ASK: dict[str, Any] = {
    "model": "long-short",
    "messages": [{"role": "user", "content": "Ann has 4 apples. She gets 3 more apples. How many apples has Ann?"}],
}
CONCURRENCY = 32


@pytest.fixture(scope="module")
def latest(root: Path, shape_models: Callable[[Path], Shapes] | None) -> Path:
    """The folder of a run with one round: the paper's preset on shape models, or the bundled model's smallest."""
    preset, changes, server = "micro", ["rl.max_steps=2"], Chat(assist)
    try:
        if shape_models:
            preset = "paper-llama3.1-8b"
            changes = long_short_changes(shape_models(root), "llama3.1", "r1-distill-llama", server.url)
        long_short(settings=load(LongShort, preset, (*changes, "rl.rounds=['long']", f"storage.root={root}")))
    finally:
        server.close()
    return root / "latest"


def test_a_model_is_trained_in_dialogue_with_another(latest: Path):
    report = json.loads((latest / "report.json").read_text())
    assert [model["name"] for model in report["models"]][1:] == ["cold start", "round 1, long"]
    assert len({model["samples"] for model in report["models"]}) == 1
    if report["preset"] != "micro":
        assert list(report["others"]) == ["AIME24", "AIME25", "AMC23", "GPQA-Diamond"]
    lines = stages(report)
    assert lines["sample-traces"]["rows_out"] > 0
    assert lines["build-cold-start-dialogues"]["rows_out"] > 0
    assert lines["train-grpo"]["generated_tokens"] > 0
    assert lines["train-grpo"]["flops"] > 0
    (figures,) = latest.glob("grpo-long-*.jsonl")
    steps = [json.loads(step) for step in figures.read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert {"correctness", "format", "length", "cap_hit", "loss", "grad_norm"} <= steps[-1].keys()


@pytest.fixture(scope="module")
def served(latest: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "flows", "serve", "long-short", "--model", str(latest), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert "answers as model 'long-short'" in line
        family = psutil.Process(process.pid)
        children = family.children(recursive=True)
        yield line.split()[0].removesuffix("/chat/completions"), family
        process.terminate()
        process.communicate()
        assert psutil.wait_procs(children, 10)[1] == []


def test_concurrent_requests_are_answered(served: tuple[str, psutil.Process]):
    client = openai.OpenAI(base_url=served[0], api_key="none", max_retries=0, timeout=300)

    def plain(_: int) -> Any:
        return client.chat.completions.create(**ASK)

    def streamed(_: int) -> Any:
        return list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        wholes, streams = pool.map(plain, range(CONCURRENCY // 2)), pool.map(streamed, range(CONCURRENCY // 2))
        for whole in wholes:
            assert whole.choices[0].message.reasoning_content.startswith("\n[long] ")
            assert whole.choices[0].finish_reason in ("stop", "length")
            assert whole.usage.completion_tokens > 0
        for chunks in streams:
            assert chunks[0].choices[0].delta.role == "assistant"
            assert any(getattr(chunk.choices[0].delta, "reasoning_content", "") for chunk in chunks[:-1])
            assert chunks[-2].choices[0].finish_reason in ("stop", "length")
            assert chunks[-1].usage.completion_tokens > 0


def test_a_dead_server_gives_503(served: tuple[str, psutil.Process]):
    url, family = served
    servers = [one for one in family.children(recursive=True) if "models.inference.vllm_main" in one.cmdline()]
    servers[-1].kill()
    with pytest.raises(openai.InternalServerError) as caught:
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60).chat.completions.create(**ASK)
    assert caught.value.status_code == 503
    assert "-thought model's server" in caught.value.message
