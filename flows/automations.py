"""Automations as code: a run that no longer gives signs of life counts as crashed, and a crashed run starts again.

It knows Prefect's events. It must not know what a run does; how often it may start again is a setting of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture

TAG = "brevity"
"""Tag of the deployments whose runs are watched."""
SILENCE = timedelta(seconds=180)
"""A run sends a heartbeat every 30 seconds (PREFECT_FLOWS_HEARTBEAT_FREQUENCY in the job templates)."""
RESTART_AFTER = timedelta(seconds=30)
"""A dead process is reported twice, by its runner and by its worker. A run that started again between the two reports
would count as crashed at once, and lose its place under the deployment's concurrency limit."""


def automations(silence: timedelta = SILENCE) -> list[AutomationCore]:
    """Two automations that watch the runs of our deployments."""
    return [
        AutomationCore(
            name="brevity: silent runs have crashed",
            description=f"No heartbeat for {silence.seconds} seconds: the machine, its worker or the run is dead.",
            trigger=_silence_after("prefect.flow-run.heartbeat", silence),
            actions=[_set(StateType.CRASHED, "Crashed", "no sign of life")],
        ),
        AutomationCore(
            name="brevity: crashed runs start again",
            description="On any worker of the pool; they go on from what is finished. `retries.restarts` limits it.",
            trigger=_silence_after("prefect.flow-run.Crashed", RESTART_AFTER),
            actions=[_set(StateType.SCHEDULED, "AwaitingRetry", "starts again")],
        ),
    ]


def _silence_after(event: str, within: timedelta) -> EventTrigger:
    """Fires for each of our runs that has no further event within this time after `event`."""
    return EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
        match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},  # type: ignore[arg-type]
        for_each={"prefect.resource.id"},
        after={event},
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def _set(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(name=name, state=state, message=message, force=False)


def ensure_automations(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> None:
    """Registers the automations, or renews them."""
    known: dict[str, Automation] = {one.name: one for one in client.read_automations()}
    for one in wanted:
        if found := known.get(one.name):
            client.update_automation(found.id, one)
        else:
            client.create_automation(one)
