"""Training with images: exact rows, the loss of completions alone, the pictures that belong to them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from conf.training import Lora
from models.checkpoints.checkpoint import TINY_VISION_MODEL, Checkpoint
from models.checkpoints.images import image_processor_class
from models.inference.sync_check import sync_check_of
from models.inference.vllm_plugin import without_videos
from models.training.launcher import TrainJob, job_paths
from models.training.train import main
from models.training.weights import load_model, log_probs
from reasoning.records import Demonstration, Pair, PairKind, Problem
from tasks.runtime.rows import RowFile
from tests.vision import problems

CHOSEN = "Start with red7.\nTherefore the answer is 7.\n</think>\nThe answer is \\boxed{7}.<|endoftext|>"
REJECTED = f"Start with red7.\nThat makes 7.\nWait, let me check.\nIt is 7 again.\n{CHOSEN}"
ROWS = 8


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_VISION_MODEL)


def job(folder: Path, model: Checkpoint, method: str, asked: list[Problem], **changes: Any) -> TrainJob:
    """One epoch of two steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with RowFile() as rows, RowFile() as known:
        known.extend(asked)
        for problem in asked:
            common = {"problem_id": problem.id, "sample": 0, "prompt_ids": model.prompt_ids(problem)}
            chosen, rejected = model.encode(CHOSEN), model.encode(REJECTED)
            if method == "sft":
                rows.append(Demonstration(**common, completion_ids=chosen))
            else:
                rows.append(Pair(**common, kind=PairKind.COMPRESSED, chosen_ids=chosen, rejected_ids=rejected))
        shutil.copy(rows.finish(), folder / "rows.parquet")
        shutil.copy(known.finish(), folder / "problems.parquet")
    settings: dict[str, Any] = {
        "method": method,
        "model": model.folder,
        "rows": folder / "rows.parquet",
        "problems": folder / "problems.parquet",
        "seed": 0,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "global_batch_size": ROWS // 2,
        "per_device_train_batch_size": ROWS // 2,
        "warmup_ratio": 0.0,
        "max_length": 512,
        "beta": 0.1,
        "log_every": 1,
        "shuffle": False,
    }
    return TrainJob(**settings | changes, **job_paths(folder))


def losses(done: TrainJob) -> list[float]:
    lines = [json.loads(line) for line in done.progress.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def processor() -> Any:
    """The model's own processor, as TRL takes it."""
    from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

    return without_videos(Qwen2_5_VLProcessor)(
        image_processor_class().from_pretrained(TINY_VISION_MODEL), AutoTokenizer.from_pretrained(TINY_VISION_MODEL)
    )


def test_the_loss_of_sft_is_that_of_the_completions(tmp_path: Path, tiny: Checkpoint):
    asked = problems(ROWS, (1, 2, 3))
    done = job(tmp_path, tiny, "sft", asked)
    main(done)
    completion = tiny.encode(CHOSEN)
    wanted = []
    for problem in asked[: ROWS // 2]:
        ids = tiny.prompt_ids(problem) + completion
        wanted += log_probs(TINY_VISION_MODEL, ids.tolist(), None, tiny.images_of(problem))[-len(completion) :]
    assert losses(done)[0] == pytest.approx(-sum(wanted) / len(wanted), abs=1e-4)
    assert losses(done)[1] < losses(done)[0]
    trained = load_file(done.output / "model.safetensors")
    start = load_file(TINY_VISION_MODEL / "model.safetensors")
    assert all(not torch.equal(trained[name].float(), start[name].float()) for name in start if "visual" in name)


def test_another_picture_gives_another_loss(tmp_path: Path, tiny: Checkpoint):
    asked = problems(ROWS, (1, 2, 3))
    swapped = [p.model_copy(update={"images": q.images}) for p, q in zip(asked, asked[::-1], strict=True)]
    right, wrong = (job(tmp_path / name, tiny, "sft", rows) for name, rows in (("r", asked), ("w", swapped)))
    for each in (right, wrong):
        main(each)
    assert losses(right)[0] != pytest.approx(losses(wrong)[0], abs=1e-4)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_losses_are_those_of_trls_own_way_with_images(tmp_path: Path, tiny: Checkpoint, method: str):
    """TRL renders and tokenizes its rows itself, with the model's processor."""
    asked = problems(ROWS, (1, 2, 3))
    done = job(tmp_path / "ours", tiny, method, asked)
    main(done)
    rows = []
    for problem in asked:
        prompt = tiny.prompts.thinking([{"type": "image"}, {"type": "text", "text": problem.text}])
        image = Image.open(__import__("io").BytesIO(problem.images[0])).convert("RGB")
        sides = {"completion": CHOSEN} if method == "sft" else {"chosen": CHOSEN, "rejected": REJECTED}
        rows.append({"prompt": prompt, "images": [image], **sides})
    kind: Any = SFTTrainer if method == "sft" else DPOTrainer
    arguments: Any = SFTConfig if method == "sft" else DPOConfig
    config = arguments(
        output_dir=str(tmp_path / "trl"),
        seed=0,
        learning_rate=1e-3,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS // 2,
        lr_scheduler_type="cosine",
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=512,
        save_strategy="no",
        adam_beta2=0.999,
        **({"beta": 0.1} if method == "dpo" else {"completion_only_loss": True}),
    )
    trainer = kind(
        model=load_model(TINY_VISION_MODEL),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor(),
        **({"ref_model": load_model(TINY_VISION_MODEL)} if method == "dpo" else {}),
    )
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses(done) == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_adapters_leave_the_vision_tower_alone(tmp_path: Path, tiny: Checkpoint, method: str):
    lora = {"lora": Lora(r=4, alpha=8), "base_model": str(TINY_VISION_MODEL), "base_fingerprint": tiny.fingerprint}
    done = job(tmp_path, tiny, method, problems(ROWS, (1, 2, 3)), **lora)
    main(done)
    adapters = load_file(done.output / "adapter_model.safetensors")
    assert adapters
    assert not [name for name in adapters if "visual" in name]
    assert all(weight.any() for name, weight in adapters.items() if "lora_B" in name)  # they begin as zeros
    check = sync_check_of(tiny.with_adapter(done.output))
    assert check is not None
    found = log_probs(TINY_VISION_MODEL, check.token_ids.tolist(), done.output, check.text.images)
    assert check.of_text(found) == pytest.approx(check.log_probs, abs=1e-4)


def test_a_sync_check_holds_the_picture_and_the_whole_prompt(tmp_path: Path, tiny: Checkpoint):
    asked = problems(ROWS, (1,))
    done = job(tmp_path, tiny, "sft", asked)
    main(done)
    check = sync_check_of(Checkpoint.open(done.output))
    assert check is not None
    assert check.images == asked[0].images
    prompt = tiny.prompt_ids(asked[0])
    assert check.token_ids[: len(prompt)] == prompt
    assert len(check.log_probs) == len(check.token_ids) - 1 - 6  # six placeholders have none
