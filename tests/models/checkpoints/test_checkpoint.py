import json
from pathlib import Path
from typing import Any

import pytest

from models.checkpoints.checkpoint import Checkpoint, CheckpointError, found_checkpoint
from tests.models.fakes import fake_checkpoint, write_safetensors


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
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


def test_the_fingerprint_depends_on_content_not_path(tmp_path: Path):
    first, second = fake_checkpoint(tmp_path / "a"), fake_checkpoint(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert Checkpoint.open(tmp_path / "a", "bfloat16").fingerprint != first.fingerprint
    write_safetensors(tmp_path / "b" / "model.safetensors", {"model.embed_tokens.weight": [6, 8]})
    assert Checkpoint.open(tmp_path / "b").fingerprint != first.fingerprint


def test_tied_weights_count_once_and_untied_embeddings_not_at_all(tmp_path: Path):
    layer = {"model.layers.0.mlp.weight": [8, 8]}
    tied = fake_checkpoint(tmp_path / "tied", {"model.embed_tokens.weight": [5, 8], **layer})
    untied = {"model.embed_tokens.weight": [5, 8], "lm_head.weight": [5, 8], **layer}
    assert tied.shape.parameters == 5 * 8 + 64
    assert fake_checkpoint(tmp_path / "untied", untied).shape.parameters == 5 * 8 + 64
    assert tied.shape.attention_width == 8


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 3554214752\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "model.safetensors",
            POINTER,
            "model.safetensors: a Git LFS pointer instead of the file; run `git lfs pull` in",
        ),
        ("tokenizer.json", POINTER, "tokenizer.json: a Git LFS pointer"),
        ("model.safetensors", "", "not a safetensors file"),
        ("model.safetensors", "<!DOCTYPE html><html>Not found</html>", "not a safetensors file"),
        ("model.safetensors", "\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
        ("model.safetensors", "\x02\0\0\0\0\0\0\0{}more", "14 bytes, but its header says 10; download it again"),
        ("config.json", '{"hidden_size": 8', "config.json: not JSON"),
        ("config.json", "[1]", "config.json: not a JSON object"),
        ("tokenizer.json", "not json", "tokenizer.json: not JSON"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not JSON"),
        ("generation_config.json", "[" * 100_000, "generation_config.json: not JSON"),
        ("model.safetensors.index.json", "{]", "index.json: not JSON"),
        ("model.safetensors.index.json", "{}", "index.json: no weight_map"),
    ],
)
def test_a_damaged_file_gives_a_one_line_error(tmp_path: Path, name: str, content: str, words: str):
    fake_checkpoint(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_in_another_format_are_not_counted(tmp_path: Path):
    alone = fake_checkpoint(tmp_path)
    write_safetensors(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": [5, 8]})
    assert Checkpoint.open(tmp_path).fingerprint == alone.fingerprint
    assert Checkpoint.open(tmp_path).tensor_sizes == {"model.embed_tokens.weight": 40}
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Checkpoint.open(tmp_path).tensor_sizes == {"model.embed_tokens.weight": 40}


def test_truncated_weights_are_reported(tmp_path: Path):
    fake_checkpoint(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(CheckpointError, match=r"its header says [\d,]+; download it again"):
        Checkpoint.open(tmp_path)


def test_sizes_of_the_language_model_in_a_multimodal_model(tmp_path: Path):
    fake_checkpoint(tmp_path)
    config = {"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 3, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    tensors = {"language_model.model.embed_tokens.weight": [5, 8], "vision_tower.patch.weight": [100, 100]}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    model = Checkpoint.open(tmp_path)
    assert (model.shape.parameters, model.shape.layers, model.shape.attention_width) == (40, 3, 32)
    assert (model.vocabulary, model.config["model_type"]) == (5, "gemma3")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"config\.json: no num_hidden_layers, nor in its text_config"):
        _ = Checkpoint.open(tmp_path).shape


@pytest.mark.parametrize("name", ["a\0b/c", "a\nb", "/" + "a" * 5000, "../../nowhere", "owner/name/more", ""])
def test_an_invalid_name_gives_a_one_line_error(name: str):
    with pytest.raises(CheckpointError) as error:
        found_checkpoint(name)
    assert str(error.value).isprintable()


def test_a_model_that_is_neither_local_nor_on_the_hub_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="some/model: no such folder, and not available from the hub: no network"):
        found_checkpoint("some/model")
    assert found_checkpoint(str(tmp_path)) == tmp_path


def test_a_hub_model_resolves_to_its_local_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: f"{tmp_path}/{name}")
    assert found_checkpoint("some/model") == tmp_path / "some/model"
