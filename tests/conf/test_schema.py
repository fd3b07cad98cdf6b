"""The JSON schemas of presets, as an editor applies them."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from conf.dto import Dto
from conf.load import PRESETS, read_toml
from conf.pipelines import PIPELINES
from conf.schema import preset_schema


def faults(pipeline: str, values: dict[str, Any]) -> list[str]:
    return [fault.json_path for fault in Draft202012Validator(preset_schema(PIPELINES[pipeline])).iter_errors(values)]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_follows_its_schema(path: Path):
    assert faults(path.parent.name, read_toml(path)) == []


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({"problems": {"count": 3}}, []),
        ({"problems": {"type": "file", "path": "x"}}, []),
        ({"problems": {"path": "x"}}, ["$.problems"]),
        ({"problems": {"type": "nothing"}}, ["$.problems"]),
        ({"pruning": {"max_logprob_drop": 1.0}}, []),
        ({"smapling": {}}, ["$"]),
        ({"sampling": {"samples": 0}}, ["$.sampling.samples"]),
        ({"engine": {"dtype": "float8"}}, ["$.engine.dtype"]),
    ],
)
def test_a_schema_finds_what_loading_refuses(values: dict[str, Any], paths: list[str]):
    assert faults("dto", values) == paths


def test_an_editor_can_show_what_a_setting_means():
    schema = preset_schema(Dto)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$defs"]["Engine"]["properties"]["dtype"]["description"].startswith("Data type of weights")
