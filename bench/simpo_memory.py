"""Peak memory of one SimPO step on a pair of 8,192 tokens per side: the chunked loss against TRL's.

    python -m bench.simpo_memory          # 5 rounds each, medians, to bench/results/simpo_memory.json

Measured on the tiny model, whose vocabulary of 640 makes logits small, and on a copy with a vocabulary of 32,768 (real
models have up to 150,000). Each step runs in its own process; the result is its peak resident memory minus that after
loading the model.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

LENGTH = 8192
ROUNDS = 5
VOCABULARIES = (640, 32_768)
RESULT = Path(__file__).parent / "results" / "simpo_memory.json"


def step(which: str, vocabulary: int) -> dict[str, float]:
    """One step in this process: MiB above the loaded model, and the loss."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from models.checkpoints.checkpoint import TINY_MODEL
    from models.training.simpo import IdsSimPOTrainer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    if vocabulary > model.config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        config = CPOConfig(
            output_dir=folder,
            loss_type="simpo",
            beta=2.0,
            simpo_gamma=0.3,
            cpo_alpha=0.0,
            bf16=False,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            max_length=LENGTH,
            per_device_train_batch_size=1,
        )
        ids = torch.randint(20, 600, (2, LENGTH - 3)).tolist()
        rows = Dataset.from_list([{"prompt_ids": [5, 6, 7], "chosen_ids": ids[0], "rejected_ids": ids[1]}])
        tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
        simpo_trainer = IdsSimPOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        model.gradient_checkpointing_enable()
        model.train()
        batch = next(iter(simpo_trainer.get_train_dataloader()))
        if which == "trl":
            IdsSimPOTrainer.concatenated_forward = CPOTrainer.concatenated_forward
            IdsSimPOTrainer.get_batch_loss_metrics = CPOTrainer.get_batch_loss_metrics
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loss, _ = simpo_trainer.get_batch_loss_metrics(model, batch)
        loss.backward()
    return {"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "loss": loss.item()}


def measure(vocabulary: int) -> dict[str, dict[str, float]]:
    rounds: dict[str, list[dict[str, float]]] = {"trl": [], "ours": []}
    for _ in range(ROUNDS):
        for which, results in rounds.items():
            command = [sys.executable, "-m", "bench.simpo_memory", which, str(vocabulary)]
            results.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    return {
        name: {"mib": median(r["mib"] for r in results), "loss": results[0]["loss"]} for name, results in rounds.items()
    }


def main() -> None:
    figures = {
        "length": LENGTH,
        "rounds": ROUNDS,
        "hardware": platform.processor() or platform.machine(),
        "vocabularies": {str(vocabulary): measure(vocabulary) for vocabulary in VOCABULARIES},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    print(json.dumps(step(sys.argv[1], int(sys.argv[2])))) if len(sys.argv) > 1 else main()
