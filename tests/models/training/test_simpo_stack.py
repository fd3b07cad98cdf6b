"""The chunked SimPO loss equals TRL's, in value and gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from models.checkpoints.checkpoint import TINY_MODEL
from models.training.simpo import IdsSimPOTrainer, completion_log_probs


def trainer(folder: Path, cpo_alpha: float) -> Any:
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
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    return IdsSimPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def loss_and_gradients(simpo_trainer: Any) -> tuple[float, dict[str, Any]]:
    simpo_trainer.model.zero_grad()
    loss, _ = simpo_trainer.get_batch_loss_metrics(
        simpo_trainer.model, next(iter(simpo_trainer.get_train_dataloader()))
    )
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in simpo_trainer.model.named_parameters()}


def test_loss_and_gradients_equal_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    simpo_trainer = trainer(tmp_path, cpo_alpha=0.0)
    torch.manual_seed(0)
    ours, gradients = loss_and_gradients(simpo_trainer)
    monkeypatch.setattr(IdsSimPOTrainer, "concatenated_forward", CPOTrainer.concatenated_forward)
    torch.manual_seed(0)
    theirs, expected = loss_and_gradients(simpo_trainer)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path):
    simpo_trainer = trainer(tmp_path, cpo_alpha=0.7)
    full = next(iter(simpo_trainer.get_train_dataloader()))
    simpo_trainer.model.zero_grad()
    simpo_trainer.get_batch_loss_metrics(simpo_trainer.model, full)[0].backward()
    expected = {name: weight.grad.clone() for name, weight in simpo_trainer.model.named_parameters()}
    simpo_trainer.model.zero_grad()
    for row in range(3):
        part = {name: value[row : row + 1] for name, value in full.items() if isinstance(value, torch.Tensor)}
        (simpo_trainer.get_batch_loss_metrics(simpo_trainer.model, part)[0] / 3).backward()
    for name, weight in simpo_trainer.model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_the_chunk_size_does_not_matter():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 30, bias=False), torch.randn(2, 11, 8, requires_grad=True)
    labels = torch.randint(0, 30, (2, 11))
    labels[0, :4] = labels[1, 8:] = -100
    full, mask = completion_log_probs(hidden, head, labels)
    small, _ = completion_log_probs(hidden, head, labels, chunk=2)
    torch.testing.assert_close(small, full)
    expected = head(hidden[:, :-1]).log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * mask
    torch.testing.assert_close(full, expected)
