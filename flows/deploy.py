"""Deployments as code: a work pool from a bundled template, and a deployment of each pipeline with a nightly schedule.

It knows Prefect's API. It must not know what a run does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.types.entrypoint import EntrypointType

from conf.errors import ReadableError
from conf.job_templates import ENVIRONMENT, PoolType, job_template
from flows.automations import TAG, automations, ensure_automations

START_GRACE = 600
"""Seconds that a run may stay PENDING before it loses its place to the next one."""


class CannotDeploy(ReadableError):
    """A deployment that Prefect's server would not take."""


def deployment(
    flow: Flow[..., Any], name: str, pool: str, parameters: dict[str, Any], job_variables: dict[str, Any], cron: str
) -> RunnerDeployment:
    """One run at a time, later ones wait; with a schedule that is switched off. A worker imports the flow by its
    module's name."""
    if "env" in job_variables:  # it replaces the template's
        own = {name: str(value) for name, value in job_variables["env"].items()}
        job_variables = job_variables | {"env": ENVIRONMENT | own}
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


def ensure_pool(client: SyncPrefectClient, name: str, kind: PoolType) -> None:
    """Creates the work pool if it is missing; one that exists keeps its template, which may have been changed on its
    page. Raises CannotDeploy for a pool of another type."""
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=job_template(kind)))
        return
    if found.type != kind:
        raise CannotDeploy(
            f"work pool {name} exists with type {found.type}; give --type {found.type} or another --pool"
        )


def deploy(pool: str, kind: PoolType, deployments: Iterable[RunnerDeployment]) -> list[str]:
    """Registers the pool and the deployments with the server at PREFECT_API_URL. Returns their names, flow/name.

    Deployments that exist keep their schedules. Raises CannotDeploy.
    """
    names = []
    try:
        with get_client(sync_client=True) as client:
            ensure_pool(client, pool, kind)
            ensure_automations(client, automations())
            for one in deployments:
                names.append(f"{one.flow_name}/{one.name}")
                if is_known(client, names[-1]):
                    one.schedules = None
                    one.model_fields_set.discard("schedules")  # not sent, so not changed
                one.apply()  # type: ignore[unused-coroutine]
    except (httpx.HTTPError, PrefectException, DeploymentApplyError) as error:
        raise CannotDeploy(
            f"Prefect's server at {os.environ.get('PREFECT_API_URL')} refuses or is away: {error}"
        ) from None
    return names


def is_known(client: SyncPrefectClient, name: str) -> bool:
    """Whether a deployment of this name exists."""
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True
