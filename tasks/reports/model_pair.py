"""The folders of the two models of a finished run: written with its report, read by the chat and the server."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import ReadableError
from conf.long_short import LongShort
from models.files import atomic_write
from reasoning.dialogue import Speaker
from reasoning.records import ModelPair
from tasks.reports.seed_results import ExperimentResult
from tasks.runtime.context import RunContext
from tasks.steps.dialogues import models_of_pair

MODEL_PAIR_FILE = "model_pair.json"


class MissingModelPair(ReadableError):
    """A folder that is not a finished run of two models."""


def save_model_pair(ctx: RunContext, experiment: ExperimentResult) -> None:
    """Writes the paths of the method's two models into the run's folder."""
    method = next(entry for entries in experiment.eval_sets.values() for entry in entries if entry.role == "method")
    (row,) = ctx.artifacts.rows(method.model, ModelPair)
    models = zip(Speaker, models_of_pair(row), strict=True)
    folders = {speaker: str(ctx.artifacts.local_path(model)) for speaker, model in models}
    atomic_write(ctx.directory.path / MODEL_PAIR_FILE, json.dumps(folders, indent=2))


def load_model_pair(run: Path) -> tuple[dict[Speaker, Path], LongShort]:
    """The two models of a run, and its settings. Raises MissingModelPair."""
    try:
        folders = json.loads((run / MODEL_PAIR_FILE).read_text())
        settings = LongShort.model_validate_json((run / "config.json").read_text())
        return {speaker: Path(folders[speaker]) for speaker in Speaker}, settings
    except OSError:
        raise MissingModelPair(
            f"{run}: no {MODEL_PAIR_FILE}; name the folder of a finished run of long-short"
        ) from None
    except (ValueError, LookupError) as error:
        first = str(error).splitlines()[0]
        raise MissingModelPair(
            f"{run}: its {MODEL_PAIR_FILE} or config.json cannot be read ({first}); if another version made them, "
            f"do the run again: what is finished is kept"
        ) from None
