"""Two replicas on the real vLLM: the same decisions as one, proven weights on both, one killed and back."""

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest

from conf.engine import Engine
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Finished, Request, ScorableText
from models.inference.own_servers import OwnServers
from models.inference.server_engine import computed_by, score_all
from models.inference.vllm_server import VllmServer
from reasoning.token_ids import TokenIds
from tests.models.inference.test_vllm_stack import perturbed
from tests.models.test_tiny_model_stack import TEXTS

GREEDY = Sampling(temperature=0, samples=1, max_tokens=48)
PROMPTS = [f"<|user|>Ann has {n} coins and finds {n + 3} more. How many coins now?<|assistant|>" for n in range(48)]
SETTINGS = Engine(max_num_seqs=8, start_timeout=300)


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_MODEL)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    engine = OwnServers(SETTINGS.model_copy(update={"replicas": 2}), tmp_path_factory.mktemp("vllm") / "two.log")
    yield engine
    engine.close()


def sample(engine: OwnServers, model: Checkpoint, kill: VllmServer | None = None) -> list[TokenIds]:
    """Completions of PROMPTS in order. `kill`: a server that is killed when the first result is there."""
    events: SimpleQueue[Any] = SimpleQueue()
    with engine.session(model, events.put) as session:
        for request_id, prompt in enumerate(PROMPTS):
            session.submit(request_id, Request(model.encode(prompt), GREEDY, 1), request_id)
        results = [events.get()]
        if kill:
            for process in psutil.Process(kill.pid).children(recursive=True):
                process.kill()
        results += [events.get() for _ in PROMPTS[1:]]
    assert all(isinstance(result, Finished) for result in results), results
    return [one.completions[0].token_ids for one in sorted(results, key=lambda result: result.request_id)]


def test_two_replicas_decide_as_one_also_when_one_is_killed(two: OwnServers, tiny: Checkpoint, tmp_path: Path):
    one = OwnServers(SETTINGS, tmp_path / "one.log")
    expected = sample(one, tiny)
    one.close()
    assert sample(two, tiny) == expected
    assert all(computed_by(server) > 0 for server in two.servers)  # both have worked
    killed = two.servers[0]
    before = killed.pid
    assert sample(two, tiny, kill=killed) == expected
    assert sample(two, tiny) == expected
    assert killed.pid != before
    assert computed_by(killed) > 0


def test_new_weights_are_proven_on_every_replica(two: OwnServers, tiny: Checkpoint, tmp_path: Path):
    sample(two, tiny)
    pids = [server.pid for server in two.servers]
    trained = perturbed(tmp_path / "trained", 0.1)
    sample(two, trained)
    assert [server.pid for server in two.servers] == pids  # both were swapped in place
    texts = [ScorableText(tiny.encode(text)) for text in TEXTS[:6]]
    first, second = (list(score_all([server], SETTINGS.timeout_for, texts)) for server in two.servers)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
