"""Cache keys depend on content alone, and every setting is in them or excluded with a reason."""

from enum import Enum
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest

import tasks
from conf.base import Settings
from conf.cot_distillation import CotDistillation, EndpointTeacher, TeacherLlm
from conf.dto import Dto
from conf.llm import Llm
from conf.long_short import LongShort
from conf.multi_seed import MultiSeed
from conf.problems import Hub, NoDecontamination, ProblemFile, Stories
from conf.prompts import Harmony, Prompt
from conf.sampling import Sampling
from conf.tiny_model import Lesson
from conf.training import SimPO
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import Step, canonical, key_of, recipe_of, run_name
from tasks.runtime.step_inputs import StepInputs
from tests.conf.test_settings import ALL_SECTIONS

REF = ArtifactRef(kind="traces", uri="/here", digest="abc", rows=1)


def key(**inputs: Any) -> str:
    return key_of(recipe_of("step", "1", inputs))


def test_a_reference_counts_by_content_not_by_location():
    assert key(a=REF) == key(a=REF.model_copy(update={"uri": "/elsewhere"}))
    assert key(a=REF) != key(a=REF.model_copy(update={"digest": "abd"}))


def test_names_of_inputs_count_and_their_order_does_not():
    assert key(a=1, b=2) == key(b=2, a=1)
    assert key(a=1, b=2) != key(a=2, b=1)


def test_step_and_version_are_in_the_key():
    keys = {key_of(recipe_of(name, version, {})) for name in ("x", "y") for version in ("1", "2")}
    assert len(keys) == 4


def test_prompt_settings_count_for_steps_with_a_model_and_when_not_default():
    model, prompt = REF.model_copy(update={"kind": "checkpoint"}), Prompt(instruction="Think.")
    plain = recipe_of("step", "1", {"model": model})
    assert recipe_of("step", "1", {"model": model}, Prompt()) == plain
    assert recipe_of("step", "1", {"traces": REF}, prompt) == recipe_of("step", "1", {"traces": REF})
    for inputs in ({"model": model}, {"models": [model]}, {"model": model.model_copy(update={"kind": "base-model"})}):
        assert key_of(recipe_of("step", "1", inputs, prompt)) != key_of(recipe_of("step", "1", inputs))
    other = Prompt(instruction="Think.", thinking=Harmony())
    assert recipe_of("step", "1", {"model": model}, prompt) != recipe_of("step", "1", {"model": model}, other)


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, object(), b"bytes", float("nan")])
def test_a_value_without_stable_content_is_refused(value: Any):
    with pytest.raises((TypeError, ValueError)):
        key(a=value)


def another(value: Any) -> Any:
    """A different value of the same kind; it is not validated."""
    match value:
        case None:
            return "x"
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str() | Enum():
            return f"{value}x"
        case tuple():
            return (*value, "x")
        case dict():
            return value | {"x": "x"}
        case _:
            return type(value).model_construct(**{**dict(value), "added": 1})


NEEDED: dict[type[Settings], dict[str, Any]] = {
    Lesson: {"stories": 1, "levels": (1,)},
    MultiSeed: {"dto": Dto()},
    Llm: {"url": "http://x", "model": "m"},
    EndpointTeacher: {"llm": TeacherLlm(url="http://x", model="m")},
    TeacherLlm: {"url": "http://x", "model": "m"},
    Hub: {"name": "owner/name"},
    ProblemFile: {"path": "x"},
    NoDecontamination: {"reason": "only stories are read"},
}
"""Values of the fields without defaults."""


@pytest.mark.parametrize("kind", ALL_SECTIONS, ids=lambda kind: kind.__name__)
def test_every_field_is_in_the_key_or_excluded_with_a_reason(kind: type[Settings]):
    base = kind(**NEEDED.get(kind, {}))
    for name in kind.model_fields:
        value = getattr(base, name)
        if isinstance(value, Settings):
            continue  # a section; it has its own test case
        changed = base.model_copy(update={name: another(value)})
        assert (canonical(changed) == canonical(base)) == (name in kind.NOT_IN_CACHE_KEY), name


def steps() -> list[Step]:
    modules = [import_module(found.name) for found in walk_packages(tasks.__path__, "tasks.")]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Step)]


REACHES_AS = {"evaluation": "sampling"}
"""Sections that become part of another input: samples of a benchmark, in its sampling. References are models."""


@pytest.mark.parametrize("pipeline", [Dto, CotDistillation, LongShort])
def test_every_section_of_a_pipeline_reaches_a_step_or_is_excluded(pipeline: type[Settings]):
    inputs = [item for step in steps() for item in step.body.__annotations__.items()]
    inputs += [item for kind in StepInputs.__subclasses__() for item in kind.__annotations__.items()]
    names, kinds = {name for name, _ in inputs}, {str(kind) for _, kind in inputs}
    for name, field in pipeline.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Settings) and name not in pipeline.NOT_IN_CACHE_KEY:
            parts = section.model_fields
            inner = {part.annotation.__name__ for part in parts.values() if isinstance(part.annotation, type)}
            reached = section.__name__ in kinds or inner & kinds or parts.keys() & names
            assert reached or REACHES_AS.get(name) in names, name


def test_memory_settings_change_no_key():
    assert key(a=SimPO(global_batch_size=16, per_device_train_batch_size=4)) == key(
        a=SimPO(global_batch_size=16, per_device_train_batch_size=8)
    )
    assert key(a=Stories(count=3)) != key(a=Stories(count=4))
    assert key(a=Sampling()) != key(a=Sampling(top_p=0.9))


def test_braces_in_labels_are_no_format():
    model = ArtifactRef(kind="base-model", uri="m", digest="d", rows=1, label="own {0} model")
    assert run_name("evaluate", {"model": model}).format() == "evaluate [own {0} model]"
