"""Settings of the marker report."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from conf.base import NOT_IN_ANY_CACHE_KEY
from conf.engine import Engine, Storage, validate_fits_context
from conf.problems import Problems, Stories
from conf.prompts import Prompted
from conf.retries import Retries
from conf.sampling import Sampling
from conf.segmentation import Markers


class MarkerReport(Prompted):
    """Samples traces and counts how their sentences begin. Helps to choose segment markers for a model."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = NOT_IN_ANY_CACHE_KEY

    pipeline: Literal["markers"] = "markers"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed for problem selection and sampling; part of the sample-store key."""
    model: str = "tiny"
    """A checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny` for the bundled one."""
    problems: Problems = Stories(count=100)
    """Problems whose traces are sampled."""
    sampling: Sampling = Sampling()
    """Sampling parameters of the traces."""
    segmentation: Markers = Markers()
    """Sentence openers that the report counts as markers."""
    engine: Engine = Engine()
    storage: Storage = Storage()
    retries: Retries = Retries()

    @model_validator(mode="after")
    def _fits_context(self) -> MarkerReport:
        validate_fits_context("sampling", self.sampling, self.engine)
        return self
