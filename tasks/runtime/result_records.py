"""What Prefect reads back from the storage of results: references to artifacts, and nothing else.

A record names the serializer that reads it. Whoever can write to a shared storage could name pickle there, and have
code executed by everybody who looks for a result; so in our processes no other serializer than ours reads anything.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from prefect.serializers import Serializer
from prefect.utilities.dispatch import get_registry_for_type

from tasks.runtime.artifacts import ArtifactRef


class RefusedRecord(RuntimeError):
    """A record of a result that another serializer would have to read. Prefect takes any error for a cache miss."""


class VerifiedRef(Serializer):
    """A reference as plain JSON; its artifact is verified when it is read from the cache."""

    type: Literal["verified-ref"] = "verified-ref"  # pyright: ignore[reportIncompatibleVariableOverride]

    def dumps(self, obj: ArtifactRef) -> bytes:
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> ArtifactRef:
        """Raises ArtifactDamaged, and ValueError for what is no reference."""
        ref = ArtifactRef.model_validate_json(blob)
        ref.verify()
        return ref


def refuse_other_serializers() -> None:
    """From now on no serializer of Prefect's reads anything in this process; they still write."""

    def loads(self: Serializer[Any], blob: bytes) -> Any:
        raise RefusedRecord(f"a record of type {self.type!r} is not read ({len(blob)} bytes)")

    registry: dict[str, Any] = get_registry_for_type(Serializer) or {}
    others = {name: kind for name, kind in registry.items() if kind is not VerifiedRef}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each takes the place of the one that it derives from
        for name, kind in others.items():
            registry[name] = type(kind.__name__, (kind,), {"loads": loads, "__module__": __name__})
