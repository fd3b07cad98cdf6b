"""The weight-sync check, servers that do not start, and requests that start none."""

import sys
from pathlib import Path

import pytest

from conf.engine import Engine
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.own_servers import OwnServers
from models.inference.vllm_server import (
    ServerCannotStart,
    ServerFailed,
    VllmServer,
    WeightSyncError,
    causes,
    check_weight_sync,
)
from tests.models.fakes import HEALTHY, fake_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def test_no_texts_start_no_server(model: Checkpoint):
    engine = OwnServers(Engine(), Path("unused"))
    assert list(engine.log_probs(model, [])) == []
    assert engine.servers[0].pid is None


def test_a_weight_swap_is_verified_by_the_trainers_log_probs(model: Checkpoint):
    check_weight_sync([-1.0, -2.0], [-1.5, -2.0], [-1.0005, -2.0], 1e-3, model)
    check_weight_sync([-1.0, -9.0], [-1.0, -9.0], [-1.0, -9.2], 0.15, model, checksum_matches=True)
    with pytest.raises(WeightSyncError, match="differ"):
        check_weight_sync([-1.0, -9.0], None, [-1.0, -9.4], 0.15, model, checksum_matches=True)
    with pytest.raises(WeightSyncError, match="no closer"):  # a small update: the old weights are within the tolerance
        check_weight_sync([-1.0, -2.0], [-1.0005, -2.0], [-1.0004, -2.0], 1e-3, model)
    with pytest.raises(WeightSyncError, match=r"differ from the trainer's by 0\.5"):
        check_weight_sync([-1.0, -2.0], [-1.0, -2.0], [-1.5, -2.0], 1e-3, model)
    with pytest.raises(WeightSyncError, match="no closer"):
        check_weight_sync([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], 1e-3, model)
    # After a start in half precision one unlikely token may be far off; in float32 it may not.
    check_weight_sync([-1.0, -9.0], None, [-1.0, -9.2], 0.15, model)
    with pytest.raises(WeightSyncError, match="differ"):
        check_weight_sync([-1.0, -9.0], None, [-1.0, -9.0015], 1e-3, model)


class ShortServer(VllmServer):
    """Runs a line of Python in the place of vLLM."""

    def __init__(self, folder: Path, code: str):
        super().__init__(Engine(), folder / "vllm.log")
        self._code, self.commands = code, 0

    def _command(self, model: Checkpoint) -> list[str]:
        _ = model
        self.commands += 1
        return [sys.executable, "-c", self._code, str(self._socket), str(self._log.parent)]


def test_a_server_that_can_never_start_says_why(model: Checkpoint, tmp_path: Path):
    server = ShortServer(tmp_path, "raise MemoryError('no room')")
    with pytest.raises(ServerCannotStart, match=r"ends when it is started; see .*vllm\.log:\nMemoryError: no room$"):
        server.serve(model)
    assert server.commands == 2


def test_a_server_that_was_killed_may_start_later(model: Checkpoint, tmp_path: Path):
    server = ShortServer(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ServerFailed, match="killed before it was ready") as error:
        server.serve(model)
    assert (error.type, server.commands) == (ServerFailed, 1)


SECOND_TIME = (
    """
import pathlib, sys

first = pathlib.Path(sys.argv[2], "first")
if not first.exists():
    first.touch()
    raise OSError("no memory just now")
"""
    + HEALTHY
)


def test_a_server_that_ends_once_is_started_again(model: Checkpoint, tmp_path: Path):
    server = ShortServer(tmp_path, SECOND_TIME)
    server.serve(model)
    server.close()
    assert server.commands == 2


LOG = """\
(APIServer pid=1) WARNING 11-29 18:00:29 [system_utils.py:249] It may cause errors like `OSError: [Errno 24] Too many`
(EngineCore pid=2) ERROR 11-29 18:00:32 [core.py:1433]     raise ValueError(
(EngineCore pid=2) ERROR 11-29 18:00:32 [core.py:1433] ValueError: No available memory for the cache blocks.
Traceback (most recent call last):
    raise ValueError(
ValueError: No available memory for the cache blocks.
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_cause_is_found_in_the_log():
    assert causes(LOG) == (
        "ValueError: No available memory for the cache blocks.\n"
        "RuntimeError: Engine core initialization failed. See root cause above."
    )
    checked = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, too long\n"
    )
    assert causes(checked + "    For further information\n").endswith(
        "1 validation error for ModelConfig Value error, too long"
    )
    assert causes("Illegal instruction\n") == "Illegal instruction"


def test_adapters_that_are_too_large_are_named_before_anything_starts(tmp_path: Path):
    server = VllmServer(Engine(), tmp_path / "log", lora_rank=513)
    with pytest.raises(ServerCannotStart, match=r"rank 513 .*\(512\); lower lora\.r, or set lora\.merge"):
        server.serve(Checkpoint.open(TINY_MODEL))
    assert server.pid is None
