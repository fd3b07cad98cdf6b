"""Settings of multi-seed runs: one method and its controls over several seeds."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from conf.base import RenamedSetting, Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.long_short import LongShort

NAME: Literal["multi-seed"] = "multi-seed"
OLD_NAME = "claims"


def present_name(pipeline: Any) -> Any:
    """The pipeline's name; for the old one, which works for one more version, the new one and a RenamedSetting."""
    if pipeline != OLD_NAME:
        return pipeline
    warnings.warn(RenamedSetting(f"the pipeline {OLD_NAME} is called {NAME} now"), stacklevel=2)
    return NAME


class MultiSeed(Settings):
    """A pipeline with its controls on several seeds, pooled."""

    RENAMED: ClassVar[dict[str, str]] = {"publish": "publish_dir", "earlier": "reuse_results_from"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "pipeline": "there is one pipeline per settings class",
        "preset": "a name; its content is in the other fields",
        "publish_dir": "where the results are copied to",
        "reuse_results_from": "where earlier results are read",
    }

    pipeline: Annotated[Literal["multi-seed"], BeforeValidator(present_name)] = NAME
    preset: Annotated[str, Field(pattern=r"^[^/\\]+$")] = "dto"
    """Names the published table, plot and seed results."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Each seed selects problems, samples and the order of training anew. Not from the paper."""
    dto: Dto | None = None
    """Settings of DTO for every seed. The base model is the same for all seeds."""
    cot_distillation: CotDistillation | None = None
    """Settings of CoT distillation for every seed."""
    long_short: LongShort | None = None
    """Settings of Long⊗Short for every seed. Give one of the three pipelines."""
    publish_dir: str = ""
    """Folder to publish to: the table goes into its docs/results.md, the plot into docs/, each seed's scores into
    docs/outcomes/, all named by the preset. Empty: results stay in the run's folder."""
    reuse_results_from: str = ""
    """Folder with results of earlier seeds of this preset, such as docs/outcomes. These seeds are not run again. Their
    settings and base model must be the same. Empty: all seeds are run."""

    @property
    def of(self) -> Dto | CotDistillation | LongShort:
        """The settings of the one pipeline that is run on each seed."""
        found = self.dto or self.cot_distillation or self.long_short
        assert found
        return found

    @model_validator(mode="after")
    def _one_pipeline(self) -> Self:
        given = [one for one in (self.dto, self.cot_distillation, self.long_short) if one]
        if len(given) != 1:
            raise ValueError("multi-seed runs one pipeline: give dto, cot_distillation or long_short")
        return self

    @model_validator(mode="after")
    def _seeds_are_here(self) -> Self:
        if self.of.seed:
            raise ValueError(f"{self.of.pipeline.replace('-', '_')}.seed has no effect here; name it in seeds")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names one twice; two runs of one seed are no two runs")
        return self


def experiment(settings: Settings) -> Any:
    """The settings of one run: of a multi-seed run, those of its pipeline."""
    return settings.of if isinstance(settings, MultiSeed) else settings
