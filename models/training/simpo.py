"""TRL's SimPO on rows of token ids, with TRL's fused output head.

CPOTrainer keeps logits [2B, T, V] for the backward pass: 2 · 8,192 · 152,000 in float32 are 10 GB for one pair of a
7 B model. The fused head computes log-probs in tiles and keeps no logits. The loss is TRL's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from trl.experimental.cpo import CPOTrainer
from trl.trainer.utils import add_fused_lm_head

IGNORED = -100
"""Label of a token that is not learnt."""


class IdsSimPOTrainer(CPOTrainer):
    """SimPO on rows that already hold token ids."""

    def __init__(self, model: Any, **settings: Any):
        add_fused_lm_head(model)
        super().__init__(model=model, **settings)

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

        The third and fourth values stand where TRL returns logits, which it only logs. The cross-entropy is a mean over
        rows of each row's mean, as SimPO's own terms are, so that micro-batches do not change the gradient; TRL takes
        one mean over all tokens of a micro-batch.
        """
        joined = self.concatenated_inputs(
            batch,
            padding_value=int(self.pad_token_id),  # type: ignore[arg-type]
            device=self.accelerator.device,
        )
        labels = joined["concatenated_labels"]
        log_probs = model(
            joined["concatenated_input_ids"],
            attention_mask=joined["concatenated_attention_mask"],
            labels=labels,
            fused_lm_head=True,
        ).log_probs
        means = log_probs.sum(-1) / (labels[:, 1:] != IGNORED).sum(-1)
        chosen = batch["chosen_labels"].shape[0]
        nothing = means.new_zeros(())
        return means[:chosen], means[chosen:], nothing, nothing, -means[:chosen].mean()

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: Any = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        return loss, {name: value for name, value in metrics.items() if "logits/" not in name}
