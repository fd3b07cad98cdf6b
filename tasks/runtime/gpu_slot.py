"""The GPUs of a node, which one run uses at a time: a global concurrency limit of Prefect, `gpu:NODE`.

It knows Prefect's limits. It must not know what runs on the GPUs.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import deployment

from models.inference.devices import VISIBLE
from tasks.runtime.progress import API_AWAY

NODE_VARIABLE = "BREVITY_NODE"
LEASE_SECONDS = 60.0
"""After this many seconds the slot of a killed run is free again."""


class GpuSlot:
    """A slot that a run takes before its first server or trainer starts, and gives back when it ends or has to wait.

    Only runs that a deployment started take one: others have no Prefect server in common. On Kubernetes, pods get GPUs
    of their own. A missing limit is made, with one slot.
    """

    def __init__(self, note: Callable[[str], None], is_needed: bool = True):
        """`is_needed`: False where another system gives out the GPUs."""
        self._note, self._is_needed = note, is_needed
        self._release: Callable[[], object] | None = None
        self._lock = threading.Lock()  # of two steps side by side, one takes it for both

    def take(self) -> None:
        """Waits for a free slot, unless this run has it. Raises ConnectionError when Prefect's server is away."""
        if not self._is_needed or deployment.id is None or "KUBERNETES_SERVICE_HOST" in os.environ:
            return
        with self._lock:
            self._release = self._release or self._take(slot_name())

    def _take(self, name: str) -> Callable[[], object]:
        """Returns what gives the slot back."""
        slot = concurrency(name, lease_duration=LEASE_SECONDS)
        self._note(f"GPU: takes a slot of the limit {name}; waits while other runs have it")
        # Prefect releases what a task has taken when the task ends; this slot outlives the step that takes it.
        outside = copy_context()
        outside.run(ConcurrencyContext.__var__.set, None)  # type: ignore[arg-type]
        try:
            _ensure_limit(name)
            outside.run(slot.__enter__)
        except (ConcurrencySlotAcquisitionError, *API_AWAY) as error:
            raise ConnectionError(f"Prefect's server gives no GPU slot: {error}") from error
        self._note("GPU: slot taken")
        return lambda: outside.run(slot.__exit__, None, None, None)

    def give_back(self) -> None:
        """A slot that Prefect's server does not take back, because it is away, is free when its lease has expired."""
        with self._lock, suppress(*API_AWAY):
            release, self._release = self._release, None
            if release:
                release()


def slot_name() -> str:
    """By node, and by the devices that this process may use. Containers have host names of their own, so there the
    node is named by BREVITY_NODE."""
    devices = os.environ.get(VISIBLE, "")
    node = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    return f"gpu:{node}:{devices}" if devices else f"gpu:{node}"


def _ensure_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another run was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
