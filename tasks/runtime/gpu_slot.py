"""The GPUs of a node, which one run uses at a time: a global concurrency limit of Prefect, `gpu:NODE`.

It knows Prefect's limits. It must not know what runs on the GPUs.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import deployment

NODE_VARIABLE = "BREVITY_NODE"
LEASE_SECONDS = 60.0
"""After this many seconds the slot of a killed run is free again."""


class GpuSlot:
    """A slot that a run takes before its first server or trainer, and gives back when it ends or has to wait.

    Only runs that a deployment started take one: others have no server in common. A missing limit is made, with one
    slot.
    """

    def __init__(self, note: Callable[[str], None]):
        self._note = note
        self._held = ExitStack()
        self._is_held = False
        self._lock = threading.Lock()  # of two steps side by side, one takes it for both

    def take(self) -> None:
        """Waits for a free slot, unless this run has it."""
        if deployment.id is None:
            return
        with self._lock:
            if not self._is_held:
                self._take(slot_name())

    def _take(self, name: str) -> None:
        _ensure_limit(name)
        self._note(f"GPU: takes a slot of the limit {name}; waits while other runs have it")
        self._held.enter_context(concurrency(name, lease_duration=LEASE_SECONDS))
        self._is_held = True
        self._note("GPU: slot taken")

    def give_back(self) -> None:
        self._held.close()
        self._is_held = False


def slot_name() -> str:
    """By node, and by the devices that this process may use. Containers have host names of their own, so there the
    node is named by BREVITY_NODE."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    node = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    return f"gpu:{node}:{devices}" if devices else f"gpu:{node}"


def _ensure_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another run was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
