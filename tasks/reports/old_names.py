"""Fields of files that an earlier version wrote."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "sets": "eval_sets",
    "notes": "tables",
    "talks": "dialogues",
    "bill": "cost_bounds",
    "payee": "billed_to",
    "beside_method": "vs_method",
    "by_original": "by_base_correctness",
    "openings": "sentence_openers",
    "engine.context": "engine.max_model_len",
}
"""New names of fields in files that an earlier version wrote."""


def with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """For `json.loads(object_hook=…)`: an object under the names of this version."""
    return {RENAMED.get(name, name): value for name, value in values.items()}
