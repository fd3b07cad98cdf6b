"""Published figures belong to bundled presets, and name what these have."""

from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.describe import setting_names
from conf.dto import Dto
from conf.load import load, presets
from conf.long_short import LongShort
from conf.published import FOLDER, published

KINDS: dict[str, Any] = {"dto": Dto, "cot-distillation": CotDistillation, "long-short": LongShort}
FILES = sorted(FOLDER.glob("*/*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_names_benchmarks_models_and_settings_of_its_preset(path: Path):
    kind = KINDS[path.parent.name]
    settings, paper = load(kind, path.name.removesuffix(".toml")), published(path.parent.name, path.stem)
    assert paper
    for by_benchmark in paper.figures.values():
        assert by_benchmark.keys() <= settings.eval_sets.keys()
    known = set(setting_names(kind))
    for name in paper.settings:
        assert name in known or name.startswith("benchmark.others.") or any(one.startswith(f"{name}.") for one in known)


def test_every_paper_preset_has_published_figures():
    names = {
        (kind, name) for kind, settings in KINDS.items() for name in presets(settings) if name.startswith("paper-")
    }
    assert {(path.parent.name, path.name.removesuffix(".toml")) for path in FILES} == names


def test_settings_that_differ_from_the_papers():
    paper = published("cot-distillation", "paper-7b")
    assert paper
    settings = load(CotDistillation, "paper-7b", ["sft.lora.r=8", "llm.model=other"])
    assert paper.differences(settings) == [
        ("llm.model", "gpt-4o-mini", "other"),
        ("sft.lora", "none", "given"),
        ("dpo.lora", "none", "given"),
    ]
    small = published("cot-distillation", "paper-1.5b")
    assert small
    assert small.differences(load(CotDistillation, "paper-1.5b")) == []


def test_other_presets_have_none():
    assert published("dto", "tiny") is None
    assert published("tiny-model", "tiny") is None
