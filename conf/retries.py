"""Settings of retries: what happens when a step fails for a reason that may pass."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from conf.base import PositiveFloat, Settings, Share


class Retry(Settings):
    """Retries of one kind of step. Only failures that may pass are retried: lost servers, storage, databases and
    leases, and timeouts. Not from the paper."""

    retries: Annotated[int, Field(ge=0, le=50)] = 3
    """Number of retries. A retry continues: completions and training checkpoints are kept."""
    delay: PositiveFloat = 10
    """Seconds before the first retry; doubled before each further one."""
    jitter: Share = 0.5
    """Random change of each delay, as a fraction of it."""
    timeout: PositiveFloat | None = None
    """Seconds that one attempt may take, waiting for another run or for GPUs included. Its servers and trainers are
    then ended, and it is retried. Default: no limit."""

    @property
    def delays(self) -> list[float]:
        """Seconds before each retry, without jitter."""
        return [self.delay * 2**index for index in range(self.retries)]


class Retries(Settings):
    """Retries of steps, by the kind of step."""

    sampling: Retry = Retry()
    """Steps that sample from a model."""
    training: Retry = Retry(delay=30)
    """Steps that train a model."""
    llm: Retry = Retry(delay=30)
    """Steps that ask an auxiliary model; single requests are retried by `llm.max_tries`."""
    data: Retry = Retry(delay=5)
    """All other steps, which read and write rows."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a deployed run starts again after it has crashed with its machine, worker or process. It goes on from
    what is finished."""
