"""JSON schemas of presets, with which editors check and complete a TOML file."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from conf.base import Settings


class _PresetSchema(GenerateJsonSchema):
    """pydantic's schema, but in a union only the default section may leave out its `type`, as in `type_or`. Otherwise
    a section without `type` would match several alternatives of `oneOf`, and so none."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        discriminator = schema["discriminator"]
        default = discriminator({}) if callable(discriminator) else None
        return {
            "oneOf": [
                part if tag == default else {"allOf": [part], "required": ["type"]}
                for tag, choice in schema["choices"].items()
                for part in [self.generate_inner(choice)]
            ]
        }


def preset_schema(kind: type[Settings]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of this pipeline's presets. Old names of settings are not in it."""
    schema = kind.model_json_schema(schema_generator=_PresetSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": f"Preset of {kind.__name__}"}
