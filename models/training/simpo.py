"""SimPO on rows of token ids, without materialising the logits of a whole batch.

TRL computes float32 logits [2B, T, V] for all positions and keeps them for the backward pass: 2 · 8,192 · 152,000 of
them take 10 GB for one pair of a 7 B model. Here the output head only processes completion positions, `CHUNK` at a
time, and recomputes each chunk in the backward pass, so the peak is CHUNK · V. The loss is TRL's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.experimental.cpo import CPOTrainer

CHUNK = 1024
"""Positions whose logits are in memory at a time."""
IGNORED = -100


class UnknownHead(RuntimeError):
    """The model changes its logits after the output head."""


class IdsSimPOTrainer(CPOTrainer):
    """TRL's SimPO on rows of token ids, with chunked log-probs."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:  # noqa: ARG002
        prompt = feature["prompt_ids"]
        row: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": prompt}
        row["prompt_attention_mask"] = [1] * len(prompt)
        for side in ("chosen", "rejected"):
            completion = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + completion
            row[f"{side}_attention_mask"] = [1] * len(prompt + completion)
            row[f"{side}_labels"] = [IGNORED] * len(prompt) + completion
        return row

    def concatenated_forward(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Mean log-prob per completion token of both sides, each [B], and the chosen side's cross-entropy per token.

        The third and fourth values replace TRL's logits, which it only logs. The cross-entropy is the mean over rows of
        each row's mean, as in SimPO's own terms, so that micro-batches do not change the gradient; TRL takes one mean
        over all tokens of a micro-batch.
        """
        joined = self.concatenated_inputs(
            batch,
            padding_value=int(self.pad_token_id),  # type: ignore[arg-type]
            device=self.accelerator.device,
        )
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        hidden = hidden_states(model, head, joined["concatenated_input_ids"], joined["concatenated_attention_mask"])
        labels = joined["concatenated_labels"]
        with self.accelerator.autocast():
            log_probs, mask = completion_log_probs(hidden, head, labels)
        means = log_probs.sum(-1) / mask.sum(-1)
        chosen = batch["chosen_labels"].shape[0]
        nothing = means.new_zeros(())
        return means[:chosen], means[chosen:], nothing, nothing, -means[:chosen].mean()

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: Any = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        return loss, {name: value for name, value in metrics.items() if "logits/" not in name}


@torch.no_grad()
def validate_head(model: Any) -> None:
    """Raises UnknownHead for a model that caps or scales its logits after the head: the chunked log-probs would be
    wrong."""
    head, token_ids = model.get_output_embeddings(), torch.zeros((1, 1), dtype=torch.long, device=model.device)
    logits = model(token_ids).logits
    read = hidden_states(model, head, token_ids, torch.ones_like(token_ids))
    if not torch.allclose(head(read), logits, rtol=1e-3, atol=1e-3):
        raise UnknownHead


def hidden_states(model: nn.Module, head: nn.Module, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Input of the output head [B, T, H]. The head itself runs on one position only."""
    captured: list[Tensor] = []

    def capture(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(inputs[0])
        return (inputs[0][:, -1:],)

    hook = head.register_forward_pre_hook(capture)
    try:
        model(token_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        hook.remove()
    return captured[0]


def completion_log_probs(hidden: Tensor, head: nn.Module, labels: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Log-prob of each label [B, T−1], 0 where it is ignored, and the mask of labels that are not ignored.

    Position t predicts label t+1. The backward pass recomputes each chunk's logits.
    """
    targets, before = labels[:, 1:], hidden[:, :-1]
    mask = targets != IGNORED
    read, wanted = before[mask], targets[mask]
    pieces = [
        checkpoint(_log_probs, part, ids, head, use_reentrant=False)
        for part, ids in zip(read.split(chunk), wanted.split(chunk), strict=True)
    ]
    flat = torch.cat(pieces)  # type: ignore[arg-type]
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat), mask


def _log_probs(hidden: Tensor, token_ids: Tensor, head: nn.Module) -> Tensor:
    logits = head(hidden).float()
    return logits.gather(-1, token_ids[:, None])[:, 0] - logits.logsumexp(-1)
