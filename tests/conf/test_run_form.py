"""The form that starts a run: what its fields stand for, and which mistakes it tells."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from conf.base import Settings
from conf.dto import Dto
from conf.load import SettingsError, load, presets, sections_of
from conf.multi_seed import MultiSeed
from conf.pipelines import PIPELINES
from conf.run_form import EMPTY, form_fields, settings_from_form

EVERY_PRESET = [(name, preset) for name, kind in PIPELINES.items() for preset in presets(kind)]


class Change(NamedTuple):
    setting: str
    value: str


def test_an_empty_form_is_the_default_preset():
    assert settings_from_form(Dto, {}) == load(Dto, "tiny")
    assert settings_from_form(Dto, {"preset": "tiny", "seed": EMPTY, "overrides": []}) == load(Dto, "tiny")


def test_fields_on_top_change_one_setting_each():
    form = {"preset": "paper-r1-1.5b", "seed": 3, "model": "a/b", "problem_count": 12}
    changed = ("seed=3", "model=a/b", "problems.count=12")
    assert settings_from_form(Dto, form) == load(Dto, "paper-r1-1.5b", changed)


def test_overrides_are_read_as_toml():
    overrides = [Change("training.learning_rate", "2e-7"), Change("pruning.type", "none")]
    expected = load(Dto, "tiny", ("training.learning_rate=2e-7", "pruning.type=none"))
    assert settings_from_form(Dto, {"overrides": overrides}) == expected


def test_complete_settings_replace_the_preset_and_can_be_changed():
    complete = load(Dto, "paper-r1-1.5b")
    assert settings_from_form(Dto, {"preset": "tiny", "settings": complete}) == complete
    changed = settings_from_form(Dto, {"preset": "tiny", "settings": complete, "seed": 5})
    assert changed == load(Dto, "paper-r1-1.5b", ("seed=5",))


def test_a_multi_seed_run_passes_its_fields_on():
    form = {"preset": "long-short", "seeds": [4], "problem_count": 40, "model": "tiny"}
    assert settings_from_form(MultiSeed, form) == load(
        MultiSeed, "long-short", ("seeds=[4]", "long_short.problems.count=40")
    )


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"overrides": [Change("problems.count", "many")]},
            r"tiny\.toml: problems\.count: Input should be",
        ),
        ({"spending_cap": 5.0}, "spending_cap has no effect: this run uses no auxiliary model"),
        ({"overrides": [Change("engine.max_model_len", "300")]}, r"max_tokens .* in engine\.max_model_len \(300\)"),
    ],
)
def test_mistakes_are_told(form: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        settings_from_form(Dto, form)


def test_which_fields_a_pipeline_has():
    one_run = ["preset", "seed", "model", "problem_count", "spending_cap", "overrides", "settings"]
    assert {name: list(form_fields(kind)) for name, kind in PIPELINES.items()} == {
        "cot-distillation": one_run,
        "dto": one_run,
        "long-short": one_run,
        "markers": ["preset", "seed", "model", "problem_count", "overrides", "settings"],
        "multi-seed": ["preset", "seeds", "model", "problem_count", "spending_cap", "overrides", "settings"],
        "tiny-model": ["preset", "seed", "overrides", "settings"],
        "tiny-vision-model": ["preset", "seed", "overrides", "settings"],
    }


@pytest.mark.parametrize(("pipeline", "preset"), EVERY_PRESET)
def test_a_deployment_holds_all_of_a_preset(pipeline: str, preset: str):
    settings = load(PIPELINES[pipeline], preset)
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings


def unions(kind: type[Settings]) -> Iterator[list[type[Settings]]]:
    """The alternatives of each union of sections, as a form orders them."""
    for info in kind.model_fields.values():
        choices = list(sections_of(info.annotation).values())
        if len(choices) > 1:
            yield choices
        for choice in choices:
            yield from unions(choice)


@pytest.mark.parametrize("kind", PIPELINES.values())
def test_a_form_opens_the_alternative_that_is_in_use(kind: type[Settings]):
    """Prefect opens the alternative that shares most keys with the value, the first of several."""
    for choices in unions(kind):
        for number, used in enumerate(choices):
            fuller = [
                choice.__name__ for choice in choices[:number] if set(choice.model_fields) >= set(used.model_fields)
            ]
            assert not fuller, f"{used.__name__} would be shown as {fuller[0]}: name it first"


@pytest.mark.parametrize("kind", PIPELINES.values())
def test_titles_of_alternatives_differ(kind: type[Settings]):
    for choices in unions(kind):
        titles = [choice.model_json_schema()["title"] for choice in choices]
        assert len(set(titles)) == len(titles), titles


@pytest.mark.parametrize("kind", PIPELINES.values())
def test_a_form_describes_every_field(kind: type[Settings]):
    schema = kind.model_json_schema()
    sections = [schema, *(section for section in schema["$defs"].values() if "properties" in section)]
    bare = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section["properties"].items()
        if not field.keys() & {"description", "$ref"}
    ]
    assert bare == []
    assert [section["title"] for section in sections if "description" not in section] == []
