"""Records of results in a shared storage: whoever can write there must not have anything executed."""

import base64
import json
import os
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect._internal.result_records import ResultRecord

from conf.engine import Engine, Storage
from reasoning.records import StageCount, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.result_records import RefusedRecord, VerifiedRef

COUNT = StageCount(rows_in=0, rows_out=0, dropped={}, **Usage().model_dump())
MODULE = "antigravity"
"""One that nobody imports otherwise."""
PICKLE = {"type": "pickle", "picklelib": "cloudpickle", "picklelib_version": cloudpickle.__version__}
JSON = {"type": "json", "jsonlib": "json", "object_decoder": "prefect.serializers.prefect_json_object_decoder"}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def encoded(content: bytes) -> str:
    return base64.encodebytes(content).decode()


def poisons(path: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """By name, a serializer and what it would read."""
    pickled = pickle.dumps(Touch(path))
    return {
        "pickle": (PICKLE, encoded(pickled)),
        "compressed": (
            {"type": "compressed", "compressionlib": "zlib", "serializer": PICKLE},
            encoded(zlib.compress(encoded(pickled).encode())),
        ),
        "compressed/pickle": (
            {"type": "compressed/pickle", "compressionlib": "zlib", "serializer": PICKLE},
            encoded(zlib.compress(encoded(pickled).encode())),
        ),
        "class": (JSON, json.dumps({"__class__": "pydantic.types.ImportString", "data": "this.s"})),
        "hook": (JSON | {"object_decoder": "builtins.print"}, "{}"),
        "import": (PICKLE | {"picklelib": MODULE}, encoded(pickled)),
        "ours": ({"type": "verified-ref"}, json.dumps({"__class__": "pydantic.types.ImportString", "data": "this"})),
    }


@step()
def publish_nothing(ctx: StepContext) -> ArtifactRef:
    return ctx.publish("problems", [], rows_in=0)


def run(root: Path) -> list[tuple[bool, str]]:
    with RunContext("test", Storage(root=str(root)), Engine()) as ctx:
        publish_nothing(ctx)
    return [(entry.cached, entry.artifact.digest) for entry in ctx.ledger]


@pytest.mark.parametrize("poison", poisons(Path()))
@pytest.mark.usefixtures("prefect")
def test_a_poisoned_record_is_not_read_and_the_result_is_found_without_it(tmp_path: Path, poison: str):
    ((_, digest),) = run(tmp_path)
    (record,) = (tmp_path / "cache").iterdir()
    serializer, content = poisons(tmp_path / "made by a record")[poison]
    body = json.loads(record.read_text())
    body["metadata"]["serializer"], body["result"] = serializer, content
    record.write_text(json.dumps(body))
    with pytest.raises((RefusedRecord, ValueError)):
        ResultRecord.deserialize(record.read_bytes())
    assert run(tmp_path) == [(True, digest)]  # by its manifest
    assert not (tmp_path / "made by a record").exists()
    assert MODULE not in sys.modules


def test_the_error_of_a_failed_attempt_is_kept_in_words_and_not_read():
    kept = VerifiedRef().dumps(ValueError("postgresql://me:hunter2@host/db is away"))
    assert b"is away" in kept
    assert b"hunter2" not in kept
    with pytest.raises(ValueError, match="ArtifactRef"):
        VerifiedRef().loads(kept)


def test_a_reference_survives_its_record(tmp_path: Path):
    with RunContext("test", Storage(root=str(tmp_path)), Engine()) as ctx:
        ref = ctx.artifacts.publish_rows("problems", [], COUNT)
    assert VerifiedRef().loads(VerifiedRef().dumps(ref)) == ref
