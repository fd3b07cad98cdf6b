"""The two models of a finished run: written with its report, read by the chat and the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from conf.errors import ReadableError
from conf.long_short import LongShort
from models.files import atomic_write
from reasoning.dialogue import Speaker
from reasoning.records import ModelPair
from tasks.reports.seed_results import ExperimentResult
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.context import RunContext, open_artifacts
from tasks.steps.dialogues import models_of_pair

MODEL_PAIR_FILE = "model_pair.json"


class MissingModelPair(ReadableError):
    """A folder that is not a finished run of two models."""


def save_model_pair(ctx: RunContext, experiment: ExperimentResult) -> None:
    """Writes where the method's two models are into the run's folder."""
    method = next(entry for entries in experiment.eval_sets.values() for entry in entries if entry.role == "method")
    (row,) = ctx.artifacts.rows(method.model, ModelPair)
    models = zip(Speaker, models_of_pair(row), strict=True)
    uris = {speaker: model.uri for speaker, model in models}
    atomic_write(ctx.directory.path / MODEL_PAIR_FILE, json.dumps(uris, indent=2))


class StoredPair(NamedTuple):
    """The two models of a run, in folders of this machine, and its settings."""

    folders: dict[Speaker, Path]
    settings: LongShort
    artifacts: ArtifactStore | None
    """Keeps copies of remote models where they are, as long as somebody refers to it."""


def load_model_pair(run: Path) -> StoredPair:
    """Fetches the models if they are in a remote storage. Raises MissingModelPair, NoStorage, ArtifactDamaged."""
    uris, settings = _read(run)
    if not any("://" in uri for uri in uris.values()):
        return StoredPair({speaker: Path(uri) for speaker, uri in uris.items()}, settings, None)
    artifacts = open_artifacts(settings.storage)
    folders = {speaker: artifacts.local_path(_checkpoint(uri)) for speaker, uri in uris.items()}
    return StoredPair(folders, settings, artifacts)


def _checkpoint(uri: str) -> ArtifactRef:
    return ArtifactRef(kind="checkpoint", uri=uri, digest=uri.rpartition("/")[2], rows=1)


def _read(run: Path) -> tuple[dict[Speaker, str], LongShort]:
    """Where the two models are, and the settings. Raises MissingModelPair."""
    try:
        uris = json.loads((run / MODEL_PAIR_FILE).read_text())
        settings = LongShort.model_validate_json((run / "config.json").read_text())
        return {speaker: str(uris[speaker]) for speaker in Speaker}, settings
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
