"""Weights in this process's memory: a model with its adapters merged, adapters on their way to disk, log-probs.

It knows PEFT and transformers. It must not know how a model is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from models.checkpoints.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from models.checkpoints.files import CheckpointError, read_json, tensor_shapes
from models.checkpoints.images import IMAGE_PROCESSOR_FILE, ImageProcessor, PromptImages, takes_images
from models.training.images import image_inputs


def load_model(folder: Path, adapter: Path | None = None) -> Any:
    """The model in `folder`, in float32 in host memory, the adapters in `adapter` merged. Raises CheckpointError."""
    kind = AutoModelForImageTextToText if takes_images(read_json(folder / "config.json")) else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32)
    if adapter is None:
        return model
    adapted = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
    if unknown := sorted(tensor_shapes(adapter / ADAPTER_WEIGHTS).keys() - get_peft_model_state_dict(adapted).keys()):
        raise CheckpointError(f"{adapter}: {folder} has no matrix for {unknown[0]}; these adapters are another model's")
    return adapted.merge_and_unload()  # type: ignore[operator]


def save_processing(model: Path, tokenizer: Any, folder: Path) -> None:
    """Writes to `folder` what turns text and images into the inputs of `model`."""
    tokenizer.save_pretrained(folder)
    if (model / IMAGE_PROCESSOR_FILE).exists():
        shutil.copy(model / IMAGE_PROCESSOR_FILE, folder)


class Adapters(NamedTuple):
    """LoRA adapters in memory, named as PEFT's files name them."""

    weights: Mapping[str, torch.Tensor]
    rank: int
    scale: float
    """Of the product of the two matrices, which is added to the model's matrix."""


def save_adapters(
    weights: Mapping[str, torch.Tensor], config: LoraConfig, start: Path | None, base_model: str, folder: Path
) -> dict[str, torch.Tensor]:
    """Writes adapters, joined with those in `start` if training began with some, as adapters on `base_model`. Returns
    what was written.

    The files are the same for the same weights and the same name of the model.
    """
    own = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    rank, alpha, targets = config.r, config.lora_alpha, set(config.target_modules or ())
    if start:
        before = read_adapter_config(start)
        earlier = Adapters(load_file(start / ADAPTER_WEIGHTS), before.r, before.scale)
        own = joined(earlier, Adapters(own, rank, alpha / rank))
        rank, targets = rank + before.r, targets | {*before.target_modules}
        alpha = rank
    folder.mkdir(parents=True, exist_ok=True)
    save_file(own, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    written = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base_model, inference_mode=True).to_dict()
    written |= {"r": rank, "lora_alpha": alpha, "target_modules": sorted(targets)}
    written["exclude_modules"] = config.exclude_modules
    (folder / ADAPTER_CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True))
    return own


def joined(one: Adapters, other: Adapters) -> dict[str, torch.Tensor]:
    """The sum of both as adapters of both ranks together and scale 1: b·BA + d·DC = [bB dD]·[A; C]. For a matrix that
    only one of them adapts, the other's are zeros."""
    found: dict[str, torch.Tensor] = {}
    for name, like in sorted({**one.weights, **other.weights}.items()):
        if ".lora_B." in name:
            parts = [each.weights.get(name, like.new_zeros(len(like), each.rank)) * each.scale for each in (one, other)]
            found[name] = torch.cat(parts, dim=1)
        else:
            parts = [each.weights.get(name, like.new_zeros(each.rank, like.shape[1])) for each in (one, other)]
            found[name] = torch.cat(parts)
    return found


def log_probs(
    folder: Path, token_ids: list[int], adapter: Path | None = None, images: PromptImages | None = None
) -> list[float]:
    """Log-prob of each token but the first under the weights on disk, in float32: the trainer's own forward may run in
    bf16."""
    inputs = image_inputs(ImageProcessor(folder), torch.tensor([token_ids]), images.files) if images else {}
    return log_probs_of(load_model(folder, adapter), token_ids, inputs)


@torch.no_grad()
def log_probs_of(model: Any, token_ids: list[int], inputs: Mapping[str, torch.Tensor] | None = None) -> list[float]:
    """Log-prob of each token but the first under a model in memory, in its own precision: bypasses the trainer's
    bfloat16 wrapper. `inputs`: as `image_inputs` makes them."""
    was_training = model.training
    model.eval()
    batch = torch.tensor([token_ids], device=model.device)
    placed = {name: value.to(model.device) for name, value in (inputs or {}).items()}
    logits = type(model).forward(model, input_ids=batch, **placed).logits.float()
    model.train(was_training)
    return logits.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None])[:, 0].tolist()
