"""Adapters: their sum, their files, the whole model that is made of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from conf.engine import Engine, Storage
from conf.training import Lora
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.checkpoints.files import CheckpointError, all_shapes
from models.inference.vllm_server import WeightSyncError
from models.training.export import FolderInUse, export
from models.training.launcher import start_of
from models.training.weights import Adapters, joined, load_model, log_probs, save_adapters
from tasks.runtime.context import RunContext
from tests.tasks.runtime.test_artifacts import COUNT

LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
SHAPES = all_shapes(TINY_MODEL)
IDS = [5, 6, 7, 8]


def tiny_adapters(rank: int, seed: int, layers: tuple[str, ...] = LAYERS) -> dict[str, torch.Tensor]:
    """Random adapters of some matrices of the bundled model."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        rows, columns = SHAPES[f"{layer}.weight"]
        made[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        made[f"base_model.model.{layer}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, generator=generator)
    return made


def saved(folder: Path) -> Path:
    """Adapters on disk, with the log-probs that a training would leave."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["up_proj"])
    save_adapters(tiny_adapters(2, 0), config, None, "tiny", folder)
    found = log_probs(TINY_MODEL, IDS, folder)
    (folder / "sync_check.json").write_text(json.dumps({"token_ids": IDS, "log_probs": found}))
    return folder


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def product(adapters: Adapters, layer: str) -> torch.Tensor:
    """What adapters add to the matrix of a layer; zero where they leave it alone."""
    names = [f"base_model.model.{layer}.lora_{part}.weight" for part in "BA"]
    if names[0] not in adapters.weights:
        return torch.zeros(())
    second, first = (adapters.weights[name] for name in names)
    return adapters.scale * second @ first


@settings(deadline=None)  # the first product of matrices starts torch's threads
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 3), st.integers(1, 2))
def test_joined_adapters_add_what_both_add(rank: int, other: int, scale: float, layers: int):
    one = Adapters(tiny_adapters(rank, 1, LAYERS[:layers]), rank, scale)
    two = Adapters(tiny_adapters(other, 2, LAYERS[::-1]), other, 2.0)
    for pair in ((one, two), (two, one)):
        both = Adapters(joined(*pair), rank + other, 1.0)
        for layer in LAYERS:
            expected = product(one, layer) + product(two, layer)
            torch.testing.assert_close(product(both, layer), expected, atol=1e-4, rtol=1e-4)
        assert all(rank + other in weight.shape for weight in both.weights.values())


def test_adapters_on_disk_are_those_of_peft(tmp_path: Path):
    """By hand: weight + alpha / r · B·A."""
    plain = load_model(TINY_MODEL).state_dict()
    model = load_model(TINY_MODEL, saved(tmp_path / "made")).state_dict()
    added = product(Adapters(tiny_adapters(2, 0), 2, 3.0), LAYERS[0])
    torch.testing.assert_close(model[f"{LAYERS[0]}.weight"], plain[f"{LAYERS[0]}.weight"] + added)
    assert torch.equal(model["model.norm.weight"], plain["model.norm.weight"])


def test_the_same_adapters_make_the_same_files(tmp_path: Path):
    first, second = (saved(tmp_path / name) for name in ("first", "second"))
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert files[0] == files[1]


def test_adapters_of_adapters_are_refused(tmp_path: Path):
    one = saved(tmp_path / "one")
    two = saved(tmp_path / "two")
    change(two, base_model_name_or_path=str(one))
    with pytest.raises(CheckpointError, match="holds adapters, too"):
        Checkpoint.open(two)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora.*merge these adapters with the program that made them"),
        ({"use_rslora": True}, "use_rslora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"up_proj": 4}}, "rank_pattern"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 0}, "r: "),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_adapters_that_cannot_be_used_are_named(fields: dict[str, Any], message: str, tmp_path: Path):
    folder = saved(tmp_path / "made")
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_incomplete_adapters_are_named(tmp_path: Path):
    folder = saved(tmp_path / "made")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="its header says"):
        Checkpoint.open(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_model_is_whole_and_says_the_same(dtype: str, tmp_path: Path):
    model = Checkpoint.open(saved(tmp_path / "made"))
    export(model, tmp_path / "whole", dtype)
    whole = Checkpoint.open(tmp_path / "whole")
    assert (whole.adapter, whole.tensor_sizes) == (None, model.tensor_sizes)
    assert whole.encode("Ann has 12 coins.") == model.encode("Ann has 12 coins.")
    assert load_file(whole.folder / "model.safetensors")[f"{LAYERS[0]}.weight"].dtype == getattr(torch, dtype)
    expected = log_probs(model.folder, IDS, model.adapter)
    assert log_probs(whole.path, IDS) == pytest.approx(expected, abs=0.15 if dtype == "bfloat16" else 1e-4)
    with pytest.raises(FolderInUse):
        export(model, tmp_path / "whole", dtype)


def test_adapters_of_another_model_are_not_exported(tmp_path: Path):
    """The base model has changed since."""
    other = load_model(TINY_MODEL)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 0.5
    other.save_pretrained(tmp_path / "base")
    Checkpoint.open(TINY_MODEL).tokenizer.save_pretrained(tmp_path / "base")
    folder = saved(tmp_path / "made")
    change(folder, base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(WeightSyncError, match="differ from the trainer's"):
        export(Checkpoint.open(folder), tmp_path / "whole", "float32")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "made"}


def test_adapters_of_other_matrices_are_refused(tmp_path: Path):
    folder = saved(tmp_path / "made")
    weights = {name.replace("layers.0", "layers.9"): weight for name, weight in tiny_adapters(2, 0).items()}
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no matrix for .*layers\.9"):
        load_model(TINY_MODEL, folder)


def test_a_model_is_named_so_that_another_folder_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(TINY_MODEL, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    change(saved(tmp_path / "made"), base_model_name_or_path="base")
    assert Checkpoint.open(Path("made")).name == str(tmp_path / "base")
    monkeypatch.chdir("/")
    with pytest.raises(CheckpointError, match="base: no such folder"):
        Checkpoint.open(tmp_path / "made")


@pytest.mark.parametrize(("ranks", "name"), [((256, 256), "tiny"), ((500, 13), "")])
def test_adapters_that_would_be_too_large_to_serve_are_merged(ranks: tuple[int, int], name: str, tmp_path: Path):
    change(saved(tmp_path / "made"), r=ranks[0])
    start = Checkpoint.open(tmp_path / "made")
    assert start_of(start, Lora(r=ranks[1])) == {
        "model": TINY_MODEL,
        "adapter": start.adapter,
        "base_model": name,
        "base_fingerprint": Checkpoint.open(TINY_MODEL).fingerprint if name else "",
    }
    assert start_of(start, Lora(r=1, merge=True))["base_model"] == ""
    assert start_of(start, None)["base_model"] == ""


def test_the_adapters_of_a_run_are_found_by_the_content_of_their_model(tmp_path: Path):
    """A model that has moved, or that another machine has in another place."""
    shutil.copytree(TINY_MODEL, tmp_path / "here")
    with RunContext("test", Storage(root=str(tmp_path / "runs")), Engine()) as ctx:
        base = ctx.resources.checkpoint(ctx.resources.model(str(tmp_path / "here")))
        folder = saved(tmp_path / "made")
        change(folder, base_model_name_or_path=str(tmp_path / "elsewhere"))
        check = folder / "sync_check.json"
        check.write_text(json.dumps(json.loads(check.read_text()) | {"base_fingerprint": base.fingerprint}))
        ref = ctx.artifacts.publish_folder("checkpoint", folder, COUNT)
        found = ctx.resources.checkpoint(ref)
    assert (found.folder, found.name) == (tmp_path / "here", str(tmp_path / "here"))
    assert found.adapter == Path(ref.uri)
