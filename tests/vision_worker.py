"""A vLLM worker extension that counts the images that the vision tower encodes."""

from typing import Any

from models.inference.vllm_worker import WeightSwap


class CountingWorker(WeightSwap):
    """For `--worker-extension-cls`."""

    def encoded_images(self) -> int:
        """Images encoded since the first call."""
        model = self.get_model()
        if not hasattr(model, "encoded_images"):
            model.encoded_images = 0
            encode = model.embed_multimodal

            def counted(**inputs: Any) -> Any:
                found = encode(**inputs)
                model.encoded_images += len(found)
                return found

            model.embed_multimodal = counted
        return model.encoded_images
