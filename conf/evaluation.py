"""Settings of the evaluation that all pipelines share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from conf.base import Positive, Settings, sections
from conf.engine import Engine
from conf.problems import Problems
from conf.sampling import Sampling

OTHER_IMAGES = ", with other images"
"""What is added to a benchmark's name where its problems have each other's images."""
CURVE_POINTS = 5
"""Token budgets of a curve whose budgets are not given."""


class Evaluation(Settings):
    """What is evaluated beside the run's own models, how often, and at which lengths."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"budgets": "at which lengths the same completions are reported"}

    references: tuple[str, ...] = ()
    """Finished models to evaluate on the same problems with the same settings, in the same table. Given like `model`.
    Not from the papers."""
    samples: dict[str, Positive] = Field(default_factory=dict)
    """Completions per problem by benchmark, where it differs from the sampling parameters' `samples`: `{AIME = 16}`.
    Small benchmarks need more. Not from the papers."""
    budgets: tuple[Positive, ...] = ()
    """Token budgets at which accuracy is reported: the same completions, each cut at the budget. Empty: the maximum
    length, and its half, quarter, eighth and sixteenth. Not from the papers."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must rise and name none twice")
        if len(set(self.references)) < len(self.references):
            raise ValueError(f"references names a model twice: {', '.join(self.references)}; name it once")
        return self


class Evaluated(Settings):
    """A pipeline that evaluates its models on benchmarks."""

    evaluation: Evaluation = Evaluation()
    """Reference models, samples of single benchmarks, token budgets."""

    @property
    def eval_sets(self) -> Mapping[str, Problems]:
        """The benchmarks by name; the first is the main one."""
        raise NotImplementedError

    @property
    def eval_sampling(self) -> Sampling:
        """Sampling parameters of the evaluation."""
        raise NotImplementedError

    def sampling_on(self, benchmark: str) -> Sampling:
        """Sampling parameters on one benchmark."""
        samples = self.evaluation.samples.get(benchmark.removesuffix(OTHER_IMAGES), self.eval_sampling.samples)
        return self.eval_sampling.model_copy(update={"samples": samples})

    @property
    def budgets(self) -> tuple[int, ...]:
        """Token budgets at which accuracy is reported, rising."""
        longest = self.eval_sampling.max_tokens
        halved = {longest >> step for step in range(CURVE_POINTS)} - {0}
        return self.evaluation.budgets or tuple(sorted(halved))

    @model_validator(mode="after")
    def _known_benchmarks(self) -> Self:
        sampling, given = self.eval_sampling, self.evaluation
        for name, samples in given.samples.items():
            if name not in self.eval_sets:
                raise ValueError(f"evaluation.samples: no benchmark {name!r}; there are {', '.join(self.eval_sets)}")
            if samples > 1 and sampling.temperature == 0:
                raise ValueError(
                    f"evaluation.samples.{name}: temperature 0 always draws the same completion; set it to 1"
                )
        if given.references and any(engine.endpoints for engine in sections(self, Engine)):
            raise ValueError(
                "engine.endpoints serve one model, and evaluation.references are others; leave one of them out"
            )
        if given.budgets and given.budgets[-1] > sampling.max_tokens:
            raise ValueError(
                f"evaluation.budgets: {given.budgets[-1]} is more than the completions' maximum length "
                f"({sampling.max_tokens}); raise max_tokens of the evaluation's sampling parameters"
            )
        return self
