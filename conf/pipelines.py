"""Every pipeline by its name on the command line."""

from __future__ import annotations

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed
from conf.tiny_model import TinyModel
from conf.tiny_vision_model import TinyVisionModel

PIPELINES: dict[str, type[Settings]] = {
    "cot-distillation": CotDistillation,
    "dto": Dto,
    "long-short": LongShort,
    "markers": MarkerReport,
    "multi-seed": MultiSeed,
    "tiny-model": TinyModel,
    "tiny-vision-model": TinyVisionModel,
}
