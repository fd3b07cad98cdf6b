"""Base job templates of Prefect work pools: how a run becomes a process, a container or a pod.

It knows the bundled templates. It must not know Prefect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

PoolType = Literal["process", "docker", "kubernetes"]
POOL_TYPES: tuple[PoolType, ...] = get_args(PoolType)
TEMPLATES = Path(__file__).parent / "work_pools"
ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_CLIENT_MAX_RETRIES": "9"}
"""Of every run: seconds between two signs of life; retries while Prefect's server is away, 17 minutes in all."""


def job_template(kind: PoolType) -> dict[str, Any]:
    """The base job template of a work pool."""
    template = json.loads((TEMPLATES / f"{kind}.json").read_text())
    template["variables"]["properties"]["env"]["default"] = ENVIRONMENT
    return template
