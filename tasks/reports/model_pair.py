"""Where the two models of a finished run are: written beside its report, read by whoever talks with them."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import ReadableError
from conf.long_short import LongShort
from models.files import write_whole
from reasoning.dialogue import Speaker
from reasoning.records import Couple
from tasks.reports.seed_results import Exam
from tasks.runtime.context import RunContext
from tasks.steps.dialogues import models_of

COUPLE_FILE = "couple.json"


class NoCouple(ReadableError):
    """A folder that is no finished run of two models."""


def keep_couple(place: RunContext, exam: Exam) -> None:
    """Writes where the method's two models are into the run's folder: whoever talks with them starts from there."""
    method = next(entry for entries in exam.sets.values() for entry in entries if entry.role == "method")
    (row,) = place.rows(method.model, Couple)
    models = zip(Speaker, models_of(row), strict=True)
    folders = {speaker: str(place.artifacts.local_path(model)) for speaker, model in models}
    write_whole(place.folder / COUPLE_FILE, json.dumps(folders, indent=2))


def kept_couple(run: Path) -> tuple[dict[Speaker, Path], LongShort]:
    """The two models of a run, and its settings. Raises NoCouple."""
    try:
        folders = json.loads((run / COUPLE_FILE).read_text())
        settings = LongShort.model_validate_json((run / "config.json").read_text())
        return {speaker: Path(folders[speaker]) for speaker in Speaker}, settings
    except OSError:
        raise NoCouple(f"{run}: no {COUPLE_FILE}; name the folder of a finished run of long-short") from None
    except (ValueError, LookupError) as error:
        first = str(error).splitlines()[0]
        raise NoCouple(
            f"{run}: its {COUPLE_FILE} or config.json cannot be read ({first}); if another version made them, do the "
            f"run again: what is finished is kept"
        ) from None
