"""The weight-sync check, and requests that start no server."""

from pathlib import Path

import pytest

from conf.engine import Engine
from models.checkpoints.checkpoint import Checkpoint
from models.inference.vllm_server import VllmServer, WeightSyncError, check_weight_sync
from tests.models.fakes import fake_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def test_no_texts_start_no_server(model: Checkpoint):
    server = VllmServer(Engine(), Path("unused"))
    assert list(server.log_probs(model, [])) == []
    assert server.pid is None


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
