"""Steps: Prefect tasks whose results are cached by content, across processes and runs.

The cache key is the digest of the step's name, the code that its result depends on, its inputs (artifacts by content
digest, settings without their `NOT_IN_CACHE_KEY` fields), and the run's prompt settings where a model is an input. An
input without stable content raises TypeError before the step runs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.settings import get_current_settings

from conf.base import Settings
from conf.prompts import Prompt
from conf.redaction import redacted
from conf.retries import Retry
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.code_version import code_version
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.failures import DiskFull, is_disk_full, is_transient
from tasks.runtime.fan_out import run_in_shards
from tasks.runtime.leases import Lease
from tasks.runtime.ledger import LedgerEntry
from tasks.runtime.placement import workers_of
from tasks.runtime.result_records import VerifiedRef, read_references_only
from tasks.runtime.run_directory import RECORDS
from tasks.runtime.step_inputs import MODEL_KINDS, StepInputs, artifacts_in

StepKind = Literal["sampling", "training", "llm", "data"]
"""Names of the settings `retries.…`."""
STEPS: dict[str, Step] = {}
"""All steps by name."""
read_references_only()


def canonical(value: Any) -> Any:
    """`value` as JSON that depends on content alone. Raises TypeError for a value without stable content."""
    if isinstance(value, ArtifactRef):
        return value.fingerprint()
    if isinstance(value, StepInputs):
        return {name: canonical(item) for name, item in value}
    if isinstance(value, Settings):
        return {name: canonical(getattr(value, name)) for name in sorted(keyed_fields(value))}
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {str(name): canonical(item) for name, item in sorted(value.items())}
    raise TypeError(f"{type(value).__name__} cannot be part of a cache key: pass settings, references or plain values")


def keyed_fields(section: Settings) -> set[str]:
    """Names of the settings that may change a result."""
    return type(section).model_fields.keys() - type(section).NOT_IN_CACHE_KEY.keys()


def recipe_of(step: str, version: str, inputs: dict[str, Any], prompt: Prompt | None = None) -> dict[str, Any]:
    """Everything that decides a step's result.

    `prompt`: the run's prompt settings. They are included where they are not the defaults and an input is a model.
    """
    recipe = {"step": step, "version": version, "inputs": canonical(inputs)}
    reads_model = any(ref.kind in MODEL_KINDS for ref in artifacts_in(inputs))
    return recipe | {"prompt": canonical(prompt)} if reads_model and prompt not in (None, Prompt()) else recipe


def name_with_labels(step: str, inputs: dict[str, Any]) -> str:
    """The step with what it works on: `evaluate [dto, the benchmark]`."""
    labels = dict.fromkeys(ref.label for ref in artifacts_in(inputs) if ref.label)
    return f"{step} [{', '.join(labels)}]" if labels else step


def run_name(step: str, inputs: dict[str, Any]) -> str:
    """The name of a step's task run."""
    return name_with_labels(step, inputs).replace("{", "{{").replace("}", "}}")  # Prefect formats it


def key_of(recipe: dict[str, Any]) -> str:
    """The step's name and 40 hex digits."""
    body = json.dumps(recipe, sort_keys=True, allow_nan=False)
    return f"{recipe['step']}-{hashlib.sha256(body.encode()).hexdigest()[:40]}"


@dataclass
class ContentKey(CachePolicy):
    """Prefect's cache policy for a step: the key that its context has."""

    def compute_key(
        self, task_ctx: TaskRunContext | None, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        _ = task_ctx, flow_parameters, kwargs
        return inputs["ctx"].key


def is_refresh_wanted() -> bool:
    """Whether the user has told Prefect to compute all tasks anew (PREFECT_TASKS_REFRESH_CACHE)."""
    return bool(get_current_settings().tasks.refresh_cache)


def should_retry(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition."""
    _ = task, run
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


class Step:
    """A cached task. Called like its body: the run context first, then keyword arguments only."""

    def __init__(self, body: Callable[..., ArtifactRef], kind: StepKind):
        self.body, self.kind = body, kind
        self.name = body.__name__.replace("_", "-")
        self.task = task(
            name=self.name,
            cache_policy=ContentKey(),
            persist_result=True,
            result_serializer=VerifiedRef(),
            retry_condition_fn=should_retry,
            log_prints=False,
        )(wraps(body)(lambda ctx, **inputs: self.attempt(ctx, **inputs)))

    def attempt(self, ctx: StepContext, /, **inputs: Any) -> ArtifactRef:
        """One attempt: holds the lease of the step's key, and takes the result of a run that was faster.

        Ends the run's servers when a failure may be theirs, or when the attempt is interrupted, as by a time-out.
        Raises DiskFull, LeaseLost, and what the body raises.
        """
        try:
            with ctx.resources.lease(ctx.key) as lease:
                if not is_refresh_wanted() and (found := ctx.artifacts.recorded(ctx.key)):
                    ctx.was_made_elsewhere = True
                    return found
                return self._make(ctx, lease, inputs)
        except BaseException as error:
            if is_disk_full(error):
                reason = getattr(error, "orig", error)  # SQLAlchemy's own message has several lines
                raise DiskFull(f"{self.name}: no space left ({reason}); free some and start the run again") from None
            if is_transient(error):
                ctx.progress.note(redacted(f"{self.name}: {type(error).__name__}: {error}"), logging.WARNING)
            if is_transient(error) or not isinstance(error, Exception):
                ctx.resources.close_engines()
            raise

    def _make(self, ctx: StepContext, lease: Lease, inputs: dict[str, Any]) -> ArtifactRef:
        """Runs the body, and records its result while the lease is held. Whatever else fails after the lease was lost
        fails because of that: LeaseLost."""
        try:
            ref = self._run_body(StepContext(ctx, ctx.key, ctx.recipe, lease), inputs)
        except Exception:
            lease.check()
            raise
        lease.check()
        ctx.artifacts.record(ctx.key, ctx.recipe, ref)
        return ref

    def _run_body(self, ctx: StepContext, inputs: dict[str, Any]) -> ArtifactRef:
        """What samples is divided among the run's workers, if it has some."""
        workers = workers_of(ctx) if self.kind == "sampling" else None
        return run_in_shards(ctx, workers, self.body, inputs) if workers else self.body(ctx, **inputs)

    @cached_property
    def version(self) -> str:
        """Digest of the code that the result depends on (`code_version`); computed on first use."""
        return code_version(self.body)

    def __call__(self, run: RunContext, **inputs: Any) -> ArtifactRef:
        """Runs the step or takes its result from the cache, and adds it to the ledger.

        Raises TypeError, before the body runs, for an input without stable content.
        """
        bound = inspect.signature(self.body).bind(run, **inputs).arguments
        keyed = {name: bound[name] for name in bound if name != "ctx"}
        recipe = recipe_of(self.name, self.version, keyed, run.resources.prompt)
        ctx = StepContext(run, key_of(recipe), recipe)
        ref, cached = (run.run_step or Step.run_task)(self, ctx, inputs)
        run.directory.add_key(ctx.key)
        inputs_read = frozenset(ref.entry for ref in artifacts_in(inputs) if ref.entry is not None)
        position = run.ledger.add(LedgerEntry(self.name, self.version, ref, cached, inputs_read))
        return ref.model_copy(update={"entry": position})

    def run_task(self, ctx: StepContext, inputs: dict[str, Any]) -> tuple[ArtifactRef, bool]:
        """The result, and whether it came from the cache; then the result counts as used now."""
        ref, cached = self.run_in_prefect(ctx, inputs)
        if cached:
            ctx.progress.note(f"{self.name}: cached, {ref.rows} rows")
            ctx.artifacts.record(ctx.key, ctx.recipe, ref)
        return ref, cached

    def run_in_prefect(self, ctx: StepContext, inputs: dict[str, Any]) -> tuple[ArtifactRef, bool]:
        """Runs the Prefect task. The result, and whether it came from the cache."""
        retry: Retry = getattr(ctx.resources.retries, self.kind)
        options: dict[str, Any] = {
            "task_run_name": run_name(self.name, inputs),
            "retries": retry.retries,
            "retry_delay_seconds": retry.delays,
            "retry_jitter_factor": retry.jitter,
            "timeout_seconds": retry.timeout,
        }
        if ctx.directory.is_local:  # else results are in Prefect's default storage
            options["result_storage"] = Path(ctx.directory.root) / RECORDS
        task: Any = self.task.with_options(**options)
        state = task(ctx, **inputs, return_state=True)
        return state.result(), state.name == "Cached" or ctx.was_made_elsewhere


def step(kind: StepKind = "data") -> Callable[[Callable[..., ArtifactRef]], Step]:
    """Makes a cached task of a function `(ctx, …) -> ArtifactRef`. `kind` decides how it is retried."""

    def made(body: Callable[..., ArtifactRef]) -> Step:
        new = Step(body, kind)
        STEPS[new.name] = new
        return new

    return made
