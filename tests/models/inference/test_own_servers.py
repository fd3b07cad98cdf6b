"""Replicas: their seeds and GPUs, and a node with a broken GPU."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conf.engine import Engine
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.dispatcher import ServerFailed
from models.inference.own_servers import OwnServers
from models.inference.vllm_server import ServerCannotStart, VllmServer
from tests.models.fakes import HEALTHY, fake_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def with_broken(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Lines of Python in the place of vLLM; those of the `broken` replicas end at once."""

    def command(self: VllmServer, model: Checkpoint) -> list[str]:
        _ = model
        code = "raise RuntimeError('the GPU has fallen off the bus')" if self._replica in broken else HEALTHY
        return [sys.executable, "-c", code, str(self._socket)]

    monkeypatch.setattr(VllmServer, "_command", command)


def serve(engine: OwnServers, model: Checkpoint) -> None:
    with engine.session(model, lambda _: None):
        pass


def test_a_node_goes_on_without_a_broken_gpu(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with_broken(monkeypatch, {1})
    engine = OwnServers(Engine(replicas=3, max_num_seqs=4), tmp_path / "vllm.log")
    assert engine.max_concurrency == 12
    serve(engine, model)
    assert [server._replica for server in engine.servers] == [0, 2]
    assert "goes on without the replica" in caplog.text
    assert "fallen off the bus" in caplog.text
    pids = [server.pid for server in engine.servers]
    serve(engine, model)  # the broken one is not tried again
    assert [server.pid for server in engine.servers] == pids
    engine.close()


def test_a_model_that_no_replica_can_serve_ends_the_run(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_broken(monkeypatch, {0, 1})
    engine = OwnServers(Engine(replicas=2), tmp_path / "vllm.log")
    with pytest.raises(ServerCannotStart, match="fallen off the bus"):
        serve(engine, model)
    assert len(engine.servers) == 2


def test_a_killed_replica_is_started_again_in_the_next_session(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_broken(monkeypatch, set())
    engine = OwnServers(Engine(replicas=2), tmp_path / "vllm.log")
    serve(engine, model)
    first, second = engine.servers
    kept, _ = first.pid, second.close()
    serve(engine, model)
    assert first.pid == kept
    assert second.pid
    engine.close()


def test_a_replica_that_has_just_gone_neither_counts_nor_ends_the_stage(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At the end of a stage the engine is asked for its counters, whatever happened to a server meanwhile."""
    with_broken(monkeypatch, set())
    engine = OwnServers(Engine(replicas=2), tmp_path / "vllm.log")
    with engine.session(model, lambda _: None):
        assert [server.is_serving() for server in engine.servers] == [True, True]
        engine.servers[0].close()
        assert [server.is_serving() for server in engine.servers] == [False, True]
        assert engine.computed_prompt_tokens == 0
        assert engine.cache_tokens is None
        monkeypatch.setattr(VllmServer, "is_serving", lambda _: True)  # as if it had gone a moment later
        assert engine.computed_prompt_tokens == 0
        assert engine.cache_tokens is None
    engine.close()


def test_replicas_never_share_a_seed_nor_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two servers with one seed would give a prompt the same samples."""
    model = Checkpoint.open(TINY_MODEL)
    monkeypatch.setattr("models.inference.own_servers.server_gpus", lambda: tuple("0123"))
    engine = OwnServers(Engine(tensor_parallel_size=2, seed=2**32 - 2), tmp_path / "vllm.log")
    commands = []
    for server in engine.servers:
        for server._starts in range(1, 4):
            commands.append(server._command(model))
    seeds = [command[command.index("--seed") + 1] for command in commands]
    assert len(set(seeds)) == 6
    assert [server._environment()["CUDA_VISIBLE_DEVICES"] for server in engine.servers] == ["0,1", "2,3"]
    assert {server._log.name for server in engine.servers} == {"vllm.log", "vllm-1.log"}


def test_a_restart_that_fails_is_the_servers_failure(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_broken(monkeypatch, set())
    engine = OwnServers(Engine(replicas=2), tmp_path / "vllm.log")
    serve(engine, model)
    with_broken(monkeypatch, {0})
    with pytest.raises(ServerFailed, match="fallen off the bus"):
        engine.servers[0].restart(threading.Event())
    serve(engine, model)
    assert [server._replica for server in engine.servers] == [1]
    engine.close()


def test_two_sessions_that_lose_a_server_start_it_again_once(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_broken(monkeypatch, set())
    engine = OwnServers(Engine(), tmp_path / "vllm.log")
    serve(engine, model)
    (server,) = engine.servers
    server.close()
    started, both, launch = list[int](), threading.Barrier(2), VllmServer._launch

    def slow_launch(self: VllmServer, model: Checkpoint) -> int | None:
        started.append(1)
        both.wait(timeout=60)
        return launch(self, model)

    def restart_second() -> None:
        both.wait(timeout=60)  # the first is at it
        server.restart(threading.Event())

    monkeypatch.setattr(VllmServer, "_launch", slow_launch)
    with ThreadPoolExecutor(2) as threads:
        done = [threads.submit(server.restart, threading.Event()), threads.submit(restart_second)]
        for each in done:
            each.result(timeout=60)
    assert len(started) == 1
    assert server.is_serving()
    engine.close()


def test_a_session_that_is_closed_meanwhile_leaves_the_restart_to_the_others(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_broken(monkeypatch, set())
    engine = OwnServers(Engine(), tmp_path / "vllm.log")
    serve(engine, model)
    (server,) = engine.servers
    closed = threading.Event()
    closed.set()
    server.restart(closed)
    assert not server.is_serving()
    server.restart(threading.Event())
    assert server.is_serving()
    engine.close()
