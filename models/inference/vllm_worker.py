"""What vLLM's worker process does for us: a swap of weights that leaves nothing stale.

Knows: vLLM's model runner, inside its own process. Must not know: who asks, and whether it is proven.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from models.checkpoints.weight_checksum import weight_checksum


class WeightSwap:
    """A vLLM worker extension: its methods become the worker's, and answer `/collective_rpc`."""

    reload_weights: Any
    get_model: Any

    def swap_weights(self, folder: str) -> None:
        """Loads the weights in `folder` in place."""
        self.reload_weights(weights_path=folder)
        head = getattr(self.get_model(), "lm_head", None)
        if head is not None and current_platform.is_cpu():
            # The CPU build multiplies by a packed copy of each matrix. A reload packs anew what it loads; an output
            # matrix tied to the embedding is not loaded by itself and would keep the copy of the old weights.
            head.quant_method.process_weights_after_loading(head)

    def held_moments(self) -> list[float]:
        """`moments` of the weights that are served. Not those of a CPU's: it packs matrices away."""
        return weight_checksum(self.get_model().parameters())
