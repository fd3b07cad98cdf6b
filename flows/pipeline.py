"""Makes a Prefect flow of a pipeline: its parameters are the run form, its body opens the run's context.

It knows forms, contexts and Prefect. It must not know what a pipeline does.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefect import Flow, flow
from prefect.runtime import flow_run
from pydantic.json_schema import PydanticJsonSchemaWarning

from conf.base import Settings
from conf.errors import ReadableError
from conf.multi_seed import experiment
from conf.run_form import FormField, form_fields, settings_from_form
from tasks.runtime.context import RunContext

S = TypeVar("S", bound=Settings)
warnings.filterwarnings("ignore", message="Default value .*Empty", category=PydanticJsonSchemaWarning)


def pipeline(kind: type[S], body: Callable[[RunContext, S], Path], **resources: Any) -> Flow[..., Path]:
    """The flow of the pipeline with settings of `kind`. It returns the path of the report.

    Call it with the fields of the form by name: `dto(preset="tiny", seed=1)` or `dto(settings=…)`. Raises SettingsError
    for a form that stands for no valid settings. `resources`: further arguments of RunContext.
    """
    name = kind.model_fields["pipeline"].default

    def run(**form: Any) -> Path:
        settings = settings_from_form(kind, form)
        stop_after(experiment(settings).retries.restarts)
        with open_run(settings, **resources) as ctx:
            return body(ctx, settings)

    run.__name__ = run.__qualname__ = name.replace("-", "_")
    run.__module__ = body.__module__
    fields = form_fields(kind)
    run.__signature__ = _signature(fields)  # type: ignore[attr-defined]
    # Prefect takes the fields' descriptions from the docstring.
    described = [f"    {field}: {one.description}" for field, one in fields.items()]
    run.__doc__ = "\n".join([f"{name}.", "", "Args:", *described])
    description = inspect.getdoc(kind)
    return flow(name=name, description=description, flow_run_name=_run_name, persist_result=False)(run)


def pipeline_flow(pipeline: str) -> Flow[..., Any]:
    """The flow of a pipeline, by its name on the command line."""
    name = pipeline.replace("-", "_")
    return getattr(importlib.import_module(f"flows.{name}"), name)


def open_run(settings: Any, **resources: Any) -> RunContext:
    """The run context that the settings of a pipeline ask for. `resources`: further arguments of RunContext."""
    run = experiment(settings)
    prompt = getattr(run, "prompt", None)  # the pipeline that makes the tiny model has none
    return RunContext(settings.pipeline, run.storage, run.engine, prompt=prompt, retries=run.retries, **resources)


class CrashedTooOften(ReadableError):
    """A run that crashed again after all its restarts."""


def stop_after(restarts: int) -> None:
    """Raises CrashedTooOften in a run that has started more than `restarts` times again. It fails then, so that the
    automation leaves it alone."""
    if (flow_run.run_count or 1) > restarts + 1:
        raise CrashedTooOften(
            f"this run has started again {restarts} times (retries.restarts); look at its log and at the node, then "
            "start a new run: it goes on from what is finished"
        )


def _signature(fields: Mapping[str, FormField]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
            for name, field in fields.items()
        ],
        return_annotation=Path,
    )


def _run_name() -> str:
    """Pipeline, preset and seed: `dto-paper-r1-1.5b-seed-3`."""
    form = flow_run.parameters
    complete = dict(form.get("settings") or {})
    given = complete | {name: form[name] for name in ("seed", "seeds") if form.get(name) is not None}
    seeds = given.get("seeds") or [given.get("seed")]
    named = [f"seed-{seed}" for seed in seeds if seed is not None]
    return "-".join([flow_run.flow_name, complete.get("preset", form["preset"]), *named])
