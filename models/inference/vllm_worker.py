"""Extension of vLLM's worker process: swaps weights in place and reports checksums of weights and adapters."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from models.checkpoints.weight_checksum import weight_checksum


class WeightSwap:
    """A vLLM worker extension (`--worker-extension-cls`). Its methods can be called through `/collective_rpc`."""

    reload_weights: Any
    get_model: Any
    model_runner: Any

    def swap_weights(self, folder: str) -> None:
        """Loads the weights in `folder` in place."""
        self.reload_weights(weights_path=folder)
        whole = self.get_model()
        model = whole.get_language_model() if hasattr(whole, "get_language_model") else whole
        head = getattr(model, "lm_head", None)
        if head is not None and current_platform.is_cpu():
            # The CPU build multiplies by packed copies of the matrices. `reload_weights` repacks what it loads, but an
            # output matrix tied to the embedding is not loaded separately and would keep the copy of the old weights.
            head.quant_method.process_weights_after_loading(head)

    def served_checksum(self) -> list[float]:
        """`weight_checksum` of the served weights. Not valid on a CPU, where matrices are packed."""
        return weight_checksum(self.get_model().parameters())

    def served_adapter_checksum(self) -> list[float]:
        """`weight_checksum` of the loaded adapters. vLLM keeps those of joined matrices in lists."""
        adapters = self.model_runner.lora_manager._adapter_manager.list_adapters().values()
        layers = [layer for adapter in adapters for layer in adapter.loras.values()]
        parts = [part for layer in layers for part in (layer.lora_a, layer.lora_b)]
        return weight_checksum(one for part in parts for one in (part if isinstance(part, list) else [part]))
