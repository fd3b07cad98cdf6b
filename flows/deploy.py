"""Deployments as code: a work pool from a bundled template, and a deployment of each pipeline with a nightly schedule.

It knows Prefect's API and the pipelines' flows. It must not know what a run does.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from conf.errors import ReadableError
from flows.automations import TAG, automations, ensure_automations

PoolType = Literal["process", "docker", "kubernetes"]
TEMPLATES = Path(__file__).parent.parent / "conf" / "work_pools"
ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_CLIENT_MAX_RETRIES": "9"}
"""Of every run, also in the templates: seconds between two signs of life; retries while Prefect's server is away, 17
minutes in all."""
START_GRACE = 600
"""Seconds that a run may stay PENDING before it loses its place to the next one."""


class CannotDeploy(ReadableError):
    """A deployment that Prefect's server would not take."""


def pipeline_flow(pipeline: str) -> Flow[..., Any]:
    """The flow of a pipeline, by its name on the command line."""
    name = pipeline.replace("-", "_")
    return getattr(importlib.import_module(f"flows.{name}"), name)


def deployment(
    flow: Flow[..., Any], name: str, pool: str, parameters: dict[str, Any], job_variables: dict[str, Any], cron: str
) -> RunnerDeployment:
    """One run at a time, later ones wait; with a schedule that is switched off. A worker imports the flow by its
    module's name."""
    if "env" in job_variables:  # it replaces the template's
        job_variables = job_variables | {"env": ENVIRONMENT | job_variables["env"]}
    return flow.to_deployment(  # type: ignore[return-value]
        name,
        parameters=parameters,
        tags=[TAG, flow.name],
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone="UTC"), active=False)],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE, grace_period_seconds=START_GRACE
        ),
        work_pool_name=pool,
        job_variables=job_variables,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def job_template(kind: PoolType) -> dict[str, Any]:
    """The base job template of a bundled work pool."""
    return json.loads((TEMPLATES / f"{kind}.json").read_text())


def ensure_pool(client: SyncPrefectClient, name: str, kind: PoolType) -> None:
    """Creates the work pool, or gives it the present template. Raises CannotDeploy for a pool of another type."""
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=job_template(kind)))
        return
    if found.type != kind:
        raise CannotDeploy(
            f"work pool {name} exists with type {found.type}; give --type {found.type} or another --pool"
        )
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=job_template(kind)))


def deploy(pool: str, kind: PoolType, deployments: Iterable[RunnerDeployment]) -> list[str]:
    """Registers the pool and the deployments with the server at PREFECT_API_URL. Returns their names, flow/name."""
    with get_client(sync_client=True) as client:
        ensure_pool(client, pool, kind)
        ensure_automations(client, automations())
    names = []
    for one in deployments:
        one.apply()  # type: ignore[unused-coroutine]
        names.append(f"{one.flow_name}/{one.name}")
    return names
