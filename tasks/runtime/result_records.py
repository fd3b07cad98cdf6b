"""What Prefect reads back from the storage of results: references to artifacts, and nothing else.

A record names the serializer that reads it. Whoever can write to a shared storage could name pickle there, and have
code executed by everybody who looks for a result; so in our processes no other serializer than ours reads anything.
"""

from __future__ import annotations

import json
import warnings
from typing import Any, Literal

from prefect.serializers import Serializer, UnknownSerializer
from prefect.utilities.dispatch import get_registry_for_type
from pydantic import ConfigDict

from conf.redaction import redacted
from tasks.runtime.artifacts import ArtifactRef


class RefusedRecord(RuntimeError):
    """A record of a result that another serializer would have to read. Prefect takes any error for a cache miss."""


class VerifiedRef(Serializer):
    """A reference as plain JSON; its artifact is verified when it is read from the cache. Of a failed attempt Prefect
    writes the error: its words are kept, and never read back."""

    type: Literal["verified-ref"] = "verified-ref"  # pyright: ignore[reportIncompatibleVariableOverride]

    def dumps(self, obj: ArtifactRef | BaseException) -> bytes:
        return (obj.model_dump_json() if isinstance(obj, ArtifactRef) else json.dumps(redacted(repr(obj)))).encode()

    def loads(self, blob: bytes) -> ArtifactRef:
        """Raises ArtifactDamaged, and ValueError for what is no reference."""
        ref = ArtifactRef.model_validate_json(blob)
        ref.verify()
        return ref


def read_references_only() -> None:
    """From now on no serializer of Prefect's reads anything in this process, nor imports what a record tells it to."""
    registry = get_registry_for_type(Serializer) or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each takes the place of another
        for name, kind in list(registry.items()):
            if kind not in (VerifiedRef, UnknownSerializer):
                _write_only(name, kind)


def _write_only(name: str, kind: type[Serializer]) -> type[Serializer]:
    """Prefect looks serializers up by `type`; a new class takes the place of the one before. Settings of a record's
    serializer are kept as they are: Prefect's own classes would import the modules that they name."""

    class WriteOnly(Serializer):
        model_config = ConfigDict(extra="allow")
        type: str = name

        def dumps(self, obj: Any) -> bytes:
            return kind().dumps(obj)

        def loads(self, blob: bytes) -> Any:
            raise RefusedRecord(f"a record of type {self.type!r} is not read ({len(blob)} bytes)")

    return WriteOnly
