"""Runs training jobs one after the other in this process: `python -m tests.models.training.run_jobs JOB …`.

accelerate offers FSDP on GPUs alone; here its processes count as such, so that PyTorch's own FSDP2 runs on a CPU with
gloo. Jobs with it must come last: accelerate does not forget it. KILL_AT names a step after which the process kills
itself, before that step is saved.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from models.training import train
from models.training.train import ProgressCallback, run


def allow_fsdp_on_a_cpu() -> None:
    begin = AcceleratorState.__init__

    def initialise(self: Any, *arguments: Any, **others: Any) -> None:
        begin(self, *arguments, **others)
        self.fsdp_plugin = others.get("fsdp_plugin") or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = initialise  # type: ignore[method-assign]


def recompute_activations() -> None:
    """As on a GPU."""
    train.uses_gradient_checkpointing = lambda: True


def kill_at(step: int) -> None:
    log = ProgressCallback.on_log

    def on_log(self: Any, args: Any, state: Any, *others: Any, **more: Any) -> None:
        log(self, args, state, *others, **more)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    ProgressCallback.on_log = on_log  # type: ignore[method-assign]


if __name__ == "__main__":
    allow_fsdp_on_a_cpu()
    recompute_activations()
    if "KILL_AT" in os.environ:
        kill_at(int(os.environ["KILL_AT"]))
    for job in sys.argv[1:]:
        run(Path(job))
