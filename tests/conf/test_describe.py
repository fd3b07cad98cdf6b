"""Which settings there are, and where their values come from."""

from pathlib import Path

import pytest

from conf.base import Settings
from conf.describe import Setting, describe, setting_names
from conf.dto import Dto
from conf.load import assign, load, preset_path, presets, read_toml
from conf.multi_seed import MultiSeed
from conf.pipelines import PIPELINES


def described(kind: type[Settings], preset: str, *assignments: str) -> list[Setting]:
    given = assign(read_toml(preset_path(kind, preset)), assignments)
    return describe(load(kind, preset, assignments), given, assign({}, assignments))


def row(name: str, *assignments: str) -> Setting:
    (found,) = [row for row in described(Dto, "tiny", *assignments) if row.name == name and not row.condition]
    return found


def test_a_setting_comes_with_type_bounds_default_and_meaning():
    found = row("engine.gpu_memory_utilization")
    assert (found.type, found.bounds, found.default) == ("number", "> 0, < 1", "0.85")
    assert found.description.startswith("Fraction of GPU memory")
    assert row("engine.dtype").type == "float32 | bfloat16 | float16"
    assert row("controls.trained").type.startswith("list of shortest-longest | sft")
    assert row("engine.request_timeout").default == "not given"
    assert row("problems.type").type == "boards | stories | file | hub"


@pytest.mark.parametrize(
    ("name", "assignments", "value", "origin"),
    [
        ("seed", (), "0", "default"),
        ("training.learning_rate", (), "5e-05", "preset"),
        ("training.learning_rate", ("training.learning_rate=1e-6",), "1e-06", "--set"),
        ("training.learning_rate", ("training={cpo_alpha=1.0}",), "5e-07", "default"),
        ("engine.seed", ("seed=3",), "3", "computed"),
        ("benchmark.problems.count", (), "480", "default"),
        ("problems.columns.problem", ("problems.type=hub", "problems.name=openai/gsm8k"), '"question"', "computed"),
    ],
)
def test_the_origin_of_a_value(name: str, assignments: tuple[str, ...], value: str, origin: str):
    found = row(name, *assignments)
    assert (found.value, found.origin) == (value, origin)


@pytest.mark.filterwarnings("ignore::conf.base.RenamedSetting")
def test_a_setting_under_its_old_name_is_shown_under_the_new_one():
    found = row("engine.max_model_len", "engine.context=3000")
    assert (found.value, found.origin) == ("3000", "--set")


def test_settings_of_alternatives_come_with_their_condition():
    rows = {(row.name, row.condition): row for row in described(Dto, "tiny")}
    assert rows["problems.name", "problems.type=hub"].default == "required"
    assert rows["problems.columns.problem", "problems.type=file or problems.type=hub"].origin == ""
    assert rows["llm.url", "llm given"].default == "required"
    assert rows["llm", ""].value == "not given"
    assert ("pruning.max_logprob_drop", "pruning.type=llm") not in rows
    pooled = {row.name: row for row in described(MultiSeed, "dto")}
    assert pooled["cot_distillation"].type == "pipeline"
    assert "cot_distillation.seed" not in pooled


def test_a_secret_in_a_value_is_hidden():
    found = row("engine.endpoints", 'engine.endpoints=["http://me:hunter2@host"]')
    assert found.value == '["http://***@host"]'


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind in PIPELINES.values() for path in presets(kind).values()], ids=str
)
def test_every_setting_of_every_preset_can_be_completed(kind: type[Settings], path: Path):
    groups = ("section", "pipeline")
    assert {row.name for row in described(kind, path.stem) if row.type not in groups} <= set(setting_names(kind))
