"""The real vLLM server: token ids, verified weight swaps, clean shutdown."""

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conf.engine import Engine
from conf.llm import Llm
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.checkpoints.files import SYNC_CHECK_FILE
from models.inference.connections import client
from models.inference.engine import Finished, Request, ScorableText
from models.inference.own_servers import OwnServers
from models.inference.vllm_server import VllmServer, WeightSyncError
from models.llm.client import LlmClient
from models.llm.reply_store import ReplyStore
from models.training.grpo import write_weights
from models.training.weights import log_probs
from reasoning import compression, difficulty, judging
from reasoning.llm_queries import LlmQuery
from reasoning.records import Problem, TextPart
from tests.models.forward import on_a_port
from tests.models.test_tiny_model_stack import STRANGE, TEXTS

GREEDY = Sampling(temperature=0, samples=1, max_tokens=24)


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_MODEL)


WITHOUT_SPACES = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
"""In structured output; the tiny model would write them until it is truncated."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """One server for all tests. Closing it ends every process."""
    engine = OwnServers(Engine(max_num_seqs=16, vllm_args=WITHOUT_SPACES), tmp_path_factory.mktemp("vllm") / "log")
    yield engine
    pid = engine.servers[0].pid
    assert pid
    family = psutil.Process(pid).children(recursive=True)
    assert family
    engine.close()
    assert psutil.wait_procs(family, 10)[1] == []


def sample(
    engine: OwnServers, model: Checkpoint, prompts: list[str], sampling: Sampling = GREEDY
) -> dict[int, Finished]:
    events: SimpleQueue[Any] = SimpleQueue()
    with engine.session(model, events.put) as session:
        for request_id, prompt in enumerate(prompts):
            session.submit(request_id, Request(model.encode(prompt), sampling, sampling.samples), request_id)
        finished = [events.get() for _ in prompts]
    assert all(isinstance(event, Finished) for event in finished), finished
    return {event.request_id: event for event in finished}


def perturbed(folder: Path, step: float, honest: bool = True) -> Checkpoint:
    """The tiny model with slightly changed weights, and a sync check that matches them if `honest`."""
    torch.manual_seed(0)
    shutil.copytree(TINY_MODEL, folder)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight += step * weight.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
    token_ids = list(Checkpoint.open(folder).encode(TEXTS[1]))[:40]
    sync_check = {"token_ids": token_ids, "log_probs": log_probs(folder if honest else TINY_MODEL, token_ids)}
    (folder / SYNC_CHECK_FILE).write_text(json.dumps(sync_check))
    return Checkpoint.open(folder)


def adapted(folder: Path, seed: int, honest: bool = True) -> Checkpoint:
    """The tiny model with random adapters, and a sync check that matches them if `honest`."""
    plain = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(plain, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    tiny = Checkpoint.open(TINY_MODEL)
    write_weights(model, tiny, folder, list(tiny.encode(TEXTS[1]))[:40])
    if not honest:
        sync_check = json.loads((folder / SYNC_CHECK_FILE).read_text())
        sync_check["log_probs"] = log_probs(TINY_MODEL, sync_check["token_ids"])
        (folder / SYNC_CHECK_FILE).write_text(json.dumps(sync_check))
    return tiny.with_adapter(folder)


def test_server_and_tokenizer_agree(engine: OwnServers, tiny: Checkpoint):
    sample(engine, tiny, ["Ann"])
    for text in [*TEXTS[:10], *STRANGE]:
        with client(engine.servers[0].url) as http:
            reply = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
        assert reply.json()["tokens"] == tiny.encode(text).tolist()


def test_every_prompt_gets_its_completions(engine: OwnServers, tiny: Checkpoint):
    prompts = [f"<|user|>Ann has {n} coins." for n in range(30)]
    finished = sample(engine, tiny, prompts, Sampling(samples=3, max_tokens=24))
    assert sorted(finished) == list(range(30))
    for one in finished.values():
        assert len(one.completions) == 3
        for completion in one.completions:
            assert 0 < len(completion.token_ids) <= 24
            assert completion.finished == (tiny.end_id == completion.token_ids[-1])


def test_log_probs_are_those_of_the_weights(engine: OwnServers, tiny: Checkpoint):
    texts = [tiny.encode(text) for text in TEXTS[:20]]
    for text, served in zip(texts, engine.log_probs(tiny, [*map(ScorableText, texts)]), strict=True):
        assert served == pytest.approx(log_probs(TINY_MODEL, list(text)), abs=1e-3)


def test_a_real_server_enforces_the_schema_of_an_auxiliary_role(engine: OwnServers, tiny: Checkpoint, tmp_path: Path):
    """The tiny model returns arbitrary values, but in the right form."""
    sample(engine, tiny, ["Ann"])
    replies = ReplyStore(f"sqlite:///{tmp_path / 'replies'}")
    with on_a_port(engine.servers[0].url) as url:
        llm = LlmClient(Llm(url=f"{url}/v1", model=engine.servers[0].name), replies)
        found = llm.ask(_queries(), lambda done, tokens: None)
    replies.close()
    assert [type(reply) for reply in found] == [query.reply for query in _queries()], found
    assert llm.usage.generated_tokens > 0


def _queries() -> list[LlmQuery[Any]]:
    problem = Problem(id="p", prompt=(TextPart(text="Ann has 1 apple and gets 1 more. How many apples?"),), answer="2")
    return [
        difficulty.difficulty_query(problem),
        judging.judging_query(problem, "It is 2."),
        compression.compression_query(problem, "Start with 1. 1+1=2. Wait, let me check. 1+1=2. It is 2 again.", 20),
    ]


def test_a_verified_swap_keeps_the_server_and_an_unverified_one_restarts_it(
    engine: OwnServers, tiny: Checkpoint, tmp_path: Path
):
    prompts = ["<|user|>Ann has 12 coins. How many coins now?<|assistant|><think>\n"]
    before, pid = sample(engine, tiny, prompts), engine.servers[0].pid
    sample(engine, perturbed(tmp_path / "other", 0.1), prompts)
    assert engine.servers[0].pid == pid
    assert sample(engine, tiny, prompts) == before  # the bundled model has no sync check
    assert engine.servers[0].pid != pid


def test_weights_that_fail_their_sync_check_are_refused(engine: OwnServers, tiny: Checkpoint, tmp_path: Path):
    sample(engine, tiny, ["Ann"])
    with pytest.raises(WeightSyncError, match="differ from the trainer's"):
        sample(engine, perturbed(tmp_path / "lying", 0.1, honest=False), ["Ann"])


def test_adapters_are_served_beside_their_weights_without_a_restart(tiny: Checkpoint, tmp_path: Path):
    engine = OwnServers(Engine(max_num_seqs=16), tmp_path / "log", lora_rank=3)
    prompts = ["<|user|>Ann has 12 coins. How many coins now?<|assistant|><think>\n"]
    before, pid = sample(engine, tiny, prompts), engine.servers[0].pid
    texts = [tiny.encode(text) for text in TEXTS[:4]]
    for seed in (1, 2):
        model = adapted(tmp_path / str(seed), seed)
        assert sample(engine, model, prompts) != before
        for text, served in zip(texts, engine.log_probs(model, [*map(ScorableText, texts)]), strict=True):
            assert served == pytest.approx(log_probs(model.folder, list(text), model.adapter), abs=1e-3)
        assert sample(engine, tiny, prompts) == before  # the weights, which are still there
    assert engine.servers[0].pid == pid
    with pytest.raises(WeightSyncError, match="differ from the trainer's"):
        sample(engine, adapted(tmp_path / "lying", 3, honest=False), prompts)
    engine.close()


def test_weights_can_be_swapped_again_after_adapters(tiny: Checkpoint, tmp_path: Path):
    """As in a training of all weights that starts from a model with adapters."""
    engine = OwnServers(Engine(max_num_seqs=16), tmp_path / "log")
    sample(engine, adapted(tmp_path / "adapters", 1), ["Ann"])
    sample(engine, perturbed(tmp_path / "one", 0.1), ["Ann"])
    pid = engine.servers[0].pid
    sample(engine, perturbed(tmp_path / "two", 0.2), ["Ann"])
    assert engine.servers[0].pid == pid
    engine.close()


def test_adapters_other_than_the_checkpoints_are_refused(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where log-probs cannot tell, as with small steps in half precision. The server had no room for adapters, so
    it is started again."""
    engine = OwnServers(Engine(max_num_seqs=16), tmp_path / "log")
    sample(engine, tiny, ["Ann"])
    asked, other = adapted(tmp_path / "asked", 1), adapted(tmp_path / "other", 2)
    monkeypatch.setattr("models.inference.vllm_server.check_weight_sync", lambda *_, **__: None)
    post = VllmServer._post

    def load_other(self: VllmServer, path: str, body: dict[str, Any]) -> httpx.Response:
        return post(self, path, body | {"lora_path": str(other.adapter)} if "lora_path" in body else body)

    monkeypatch.setattr(VllmServer, "_post", load_other)
    with pytest.raises(WeightSyncError, match="the server has other adapters"):
        sample(engine, asked, ["Ann"])
    monkeypatch.setattr(VllmServer, "_post", post)
    sample(engine, asked, ["Ann"])
    engine.close()


def test_adapters_that_vllm_cannot_serve_are_named(tiny: Checkpoint, tmp_path: Path):
    engine = OwnServers(Engine(max_num_seqs=16), tmp_path / "log", lora_rank=3)
    model = adapted(tmp_path / "adapters", 1)
    weights = tmp_path / "adapters" / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "router"): one for name, one in load_file(weights).items()}, weights)
    with pytest.raises(WeightSyncError, match=r"adapters: vLLM refuses the adapters: .*router"):
        sample(engine, model, ["Ann"])
    engine.close()


def test_no_other_user_reaches_the_server(engine: OwnServers, tiny: Checkpoint):
    """It answers on no port, and its socket lies in a folder that only its owner may enter."""
    sample(engine, tiny, ["Ann"])
    server = engine.servers[0]
    assert server.pid
    family = psutil.Process(server.pid).children(recursive=True)
    for port in {one.laddr.port for process in family for one in process.net_connections("inet") if one.laddr}:
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=2)
    socket = Path(server.url.removeprefix("unix:"))
    assert socket.is_socket()
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
