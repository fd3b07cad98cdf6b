"""The fused SimPO loss is TRL's own, in value and in gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig, GraniteForCausalLM
from trl.experimental.cpo import CPOConfig, CPOTrainer

from models.checkpoints.checkpoint import TINY_MODEL
from models.training.simpo import IdsSimPOTrainer


def scaled() -> Any:
    """A model that scales its logits after the output head."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 640, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return GraniteForCausalLM(
        GraniteConfig(**size, num_attention_heads=2, num_key_value_heads=2, logits_scaling=8.0, initializer_range=1.0)
    )


def bundled() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)


def trainer(folder: Path, cpo_alpha: float, make: Callable[[], Any] = bundled) -> Any:
    config = CPOConfig(
        output_dir=str(folder),
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=0.3,
        cpo_alpha=cpo_alpha,
        bf16=False,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        max_length=256,
        per_device_train_batch_size=3,
    )
    rows = [
        {"prompt_ids": [5, 6, 7], "chosen_ids": list(range(20, 20 + n)), "rejected_ids": list(range(40, 40 + 2 * n))}
        for n in (2, 7, 13)
    ]
    model = make()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    return IdsSimPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def loss_and_gradients(made: Any) -> tuple[float, dict[str, Any]]:
    made.model.zero_grad()
    loss, _ = made.get_batch_loss_metrics(made.model, next(iter(made.get_train_dataloader())))
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in made.model.named_parameters()}


@pytest.mark.parametrize("make", [bundled, scaled])
def test_loss_and_gradients_equal_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]):
    made = trainer(tmp_path, 0.0, make)
    torch.manual_seed(0)
    ours, gradients = loss_and_gradients(made)
    monkeypatch.setattr(IdsSimPOTrainer, "concatenated_forward", CPOTrainer.concatenated_forward)
    torch.manual_seed(0)
    theirs, expected = loss_and_gradients(made)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path):
    made = trainer(tmp_path, cpo_alpha=0.7)
    whole = next(iter(made.get_train_dataloader()))
    made.model.zero_grad()
    made.get_batch_loss_metrics(made.model, whole)[0].backward()
    expected = {name: weight.grad.clone() for name, weight in made.model.named_parameters()}
    made.model.zero_grad()
    for row in range(3):
        part = {name: value[row : row + 1] for name, value in whole.items() if isinstance(value, torch.Tensor)}
        (made.get_batch_loss_metrics(made.model, part)[0] / 3).backward()
    for name, weight in made.model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-6)
