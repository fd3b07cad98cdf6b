"""Settings of the marker report."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from conf.dto import Dto
from conf.engine import Engine, Storage, validate_fits_context
from conf.problems import Problems, Stories
from conf.prompts import Prompted
from conf.sampling import Sampling
from conf.segmentation import Markers


class MarkerReport(Prompted):
    """Traces of a model, and how their sentences begin: from this its segment markers are chosen."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = Dto.NOT_IN_CACHE_KEY

    pipeline: Literal["markers"] = "markers"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    model: str = "tiny"
    """As in `Dto`."""
    problems: Problems = Stories(count=100)
    sampling: Sampling = Sampling()
    segmentation: Markers = Markers()
    """Which openings the report calls markers."""
    engine: Engine = Engine()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _fits_context(self) -> MarkerReport:
        validate_fits_context("sampling", self.sampling, self.engine)
        return self
