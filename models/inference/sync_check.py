"""The text by which a server proves that it has a checkpoint's weights, as a trainer writes it beside them.

Knows token ids, images and log-probs. Must not know who computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Base64Bytes, BaseModel, ConfigDict

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.files import SYNC_CHECK_FILE
from models.checkpoints.images import PromptImages
from models.inference.engine import ScorableText
from reasoning.token_ids import TokenIds


class SyncCheck(BaseModel):
    """A text and its log-probs under the trainer. With images it proves the vision tower, too."""

    model_config = ConfigDict(frozen=True)

    token_ids: TokenIds
    images: tuple[Base64Bytes, ...] = ()
    image_token_id: int | None = None
    log_probs: tuple[float, ...] = ()
    """Of each token but the first, placeholders of images excepted: what they would be is arbitrary, and far off in
    half precision."""
    base_fingerprint: str | None = None
    """Of the weights that adapters belong to."""

    @classmethod
    def of(cls, text: ScorableText, log_probs: Sequence[float], base_fingerprint: str | None = None) -> Self:
        """`log_probs`: of each token of `text` but the first."""
        made = cls.model_construct(
            token_ids=text.token_ids,
            images=text.images.files if text.images else (),
            image_token_id=text.images.token_id if text.images else None,
            base_fingerprint=base_fingerprint,
        )
        return made.model_copy(update={"log_probs": tuple(made.of_text(log_probs))})

    @property
    def text(self) -> ScorableText:
        images = None if self.image_token_id is None else PromptImages(self.images, self.image_token_id)
        return ScorableText(self.token_ids, images)

    def of_text(self, log_probs: Sequence[float]) -> list[float]:
        """Those of `log_probs`, of each token but the first, that are compared."""
        pairs = zip(self.token_ids[1:], log_probs, strict=True)
        return [value for token, value in pairs if token != self.image_token_id]


def write_sync_check(folder: Path, check: SyncCheck) -> None:
    """Writes it beside the weights or adapters in `folder`."""
    (folder / SYNC_CHECK_FILE).write_text(check.model_dump_json(exclude_defaults=True))


def sync_check_of(model: Checkpoint) -> SyncCheck | None:
    """That which was written beside a checkpoint, if there is one."""
    path = model.path / SYNC_CHECK_FILE
    return SyncCheck.model_validate_json(path.read_bytes()) if path.is_file() else None
