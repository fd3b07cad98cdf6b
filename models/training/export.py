"""A model as one folder for other programs: adapters merged, in a chosen precision.

It knows weights and their sync check. It must not know runs, nor where they keep their models.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from conf.errors import ReadableError
from models.checkpoints.checkpoint import Checkpoint
from models.files import make_readable
from models.inference.sync_check import sync_check_of
from models.inference.vllm_server import SYNC_CHECK_TOLERANCE, WeightSyncError, check_weight_sync
from models.training.weights import load_model, log_probs, save_processing


class FolderInUse(ReadableError):
    """The folder to write exists."""


def export(model: Checkpoint, folder: Path, dtype: str) -> None:
    """Writes `model` into `folder`, with its tokenizer. Where a training left log-probs, what was written must have
    them. Raises FolderInUse, WeightSyncError."""
    if folder.exists():
        raise FolderInUse(f"{folder} exists; name a folder that does not")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    load_model(model.folder, model.adapter).to(getattr(torch, dtype)).save_pretrained(unfinished)
    save_processing(model.folder, model.tokenizer, unfinished)
    if check := sync_check_of(model):
        found = log_probs(unfinished, check.token_ids.tolist(), images=check.text.images)
        try:
            check_weight_sync(check.log_probs, None, check.of_text(found), SYNC_CHECK_TOLERANCE[dtype], model)
        except WeightSyncError:
            shutil.rmtree(unfinished)
            raise
    make_readable(unfinished)
    unfinished.rename(folder)
