import json
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import Checkpoint, CheckpointError, found_checkpoint, refuse_changed_logits
from tests.models.fakes import fake_checkpoint, write_safetensors


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_part_is_named(tmp_path: Path, name: str):
    fake_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace("model", "")):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path):
    fake_checkpoint(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"not there: model-2\.safetensors"):
        Checkpoint.open(tmp_path)


def test_the_fingerprint_follows_content_not_place(tmp_path: Path):
    first, second = fake_checkpoint(tmp_path / "a"), fake_checkpoint(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert Checkpoint.open(tmp_path / "a", "bfloat16").fingerprint != first.fingerprint
    write_safetensors(tmp_path / "b" / "model.safetensors", {"model.embed_tokens.weight": [6, 8]})
    assert Checkpoint.open(tmp_path / "b").fingerprint != first.fingerprint


def test_tied_weights_multiply_once_and_untied_lookups_not_at_all(tmp_path: Path):
    layer = {"model.layers.0.mlp.weight": [8, 8]}
    tied = fake_checkpoint(tmp_path / "tied", {"model.embed_tokens.weight": [5, 8], **layer})
    untied = {"model.embed_tokens.weight": [5, 8], "lm_head.weight": [5, 8], **layer}
    assert tied.shape.parameters == 5 * 8 + 64
    assert fake_checkpoint(tmp_path / "untied", untied).shape.parameters == 5 * 8 + 64
    assert tied.shape.attention_width == 8


@pytest.mark.parametrize(("field", "value"), [("final_logit_softcapping", 30.0), ("logits_scaling", 8.0)])
def test_a_model_that_changes_its_logits_is_refused(tmp_path: Path, field: str, value: float):
    fake_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({field: value}))
    with pytest.raises(CheckpointError, match=f"{field} = {value}: this model changes its logits"):
        refuse_changed_logits(Checkpoint.open(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"final_logit_softcapping": None, "logits_scaling": 1.0}))
    refuse_changed_logits(Checkpoint.open(tmp_path))


def test_a_model_that_is_neither_here_nor_on_the_hub_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="some/model: no such folder, and not to be had from the hub: no network"):
        found_checkpoint("some/model")
    assert found_checkpoint(str(tmp_path)) == tmp_path


def test_a_model_of_the_hub_is_its_local_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: f"{tmp_path}/{name}")
    assert found_checkpoint("some/model") == tmp_path / "some/model"
