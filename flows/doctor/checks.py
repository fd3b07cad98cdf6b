"""Verdicts of `brevity doctor` on this machine: functions of plain facts, which `flows.doctor.facts` reads."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from conf.engine import Engine
from conf.workers import Workers
from models.file_systems import REMEDY, Mount
from models.inference.devices import TooFewGpus, beside_trainer, described, replica_gpus

TIGHT = 0.9
"""Share of the room above which an estimate counts as tight."""
Version = tuple[int, int]
"""Major and minor."""
SETUP = "make setup ACCELERATOR={}, which installs conf/requirements/{}.txt"


class State(StrEnum):
    """What a finding means for the run."""

    OK = "ok"
    WARNING = "warning"
    """The run may fail, or be slow."""
    ERROR = "error"
    """The run cannot be done like this."""


class Finding(NamedTuple):
    """A row of the table."""

    check: str
    state: State
    found: str
    remedy: str = ""


class Gpu(NamedTuple):
    number: int
    uuid: str
    name: str
    driver: str
    total: float | None
    """Memory in bytes; None where nvidia-smi does not tell it."""
    free: float | None


class Gpus(NamedTuple):
    """What nvidia-smi says."""

    devices: tuple[Gpu, ...] = ()
    """Those that the run may use."""
    cuda: Version | None = None
    """Newest version that the driver supports."""
    hidden: int = 0
    """Number of GPUs that CUDA_VISIBLE_DEVICES excludes."""
    problem: str = ""
    """Why an NVIDIA GPU that is there cannot be used; empty if nothing is wrong."""

    @property
    def smallest(self) -> float | None:
        """Bytes of the smallest one; None if unknown."""
        return min((gpu.total for gpu in self.devices if gpu.total), default=None)


class Builds(NamedTuple):
    """The installed builds of torch and vLLM."""

    torch: str
    cuda: Version | None
    """None for a build without CUDA."""
    vllm_on_cpu: bool


class GpuUse(NamedTuple):
    """What a part of the run takes of a GPU's memory, by estimate."""

    what: str
    least: float
    """Bytes without which it fails."""
    usual: float
    """Bytes as the settings ask for it."""
    share: float
    """Share of the GPU's memory that it may take."""
    remedy: str
    usual_remedy: str = ""
    """What to do if only `least` fits."""


def visible_gpus(devices: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """The devices that CUDA_VISIBLE_DEVICES names by index or UUID; all of them where it names something else (MIG)."""
    if variable is None:
        return tuple(devices)
    names = [name.strip() for name in variable.split(",")]
    if names[0] in ("", "-1"):
        return ()
    found = [
        gpu
        for name in names
        for gpu in devices
        if name == str(gpu.number) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]
    return tuple(found or devices)


def check_driver(gpus: Gpus, builds: Builds, is_usable: bool, is_bundled: bool) -> Finding:
    """`is_usable`: whether torch reaches a GPU. `is_bundled`: whether the run needs only the bundled model."""
    if gpus.problem:
        found, remedy = split_message(gpus.problem)
        return Finding("GPU", State.ERROR, found, remedy)
    return _with_gpu(gpus, builds, is_usable) if gpus.devices else _without_gpu(gpus, builds, is_bundled)


def _without_gpu(gpus: Gpus, builds: Builds, is_bundled: bool) -> Finding:
    found = f"CUDA_VISIBLE_DEVICES hides {gpus.hidden} GPUs" if gpus.hidden else "no NVIDIA GPU"
    if not builds.vllm_on_cpu:
        remedy = SETUP.format("cpu", "cpu")
        return Finding("GPU", State.ERROR, f"{found}, and vLLM's GPU build, which needs one, is installed", remedy)
    if is_bundled:
        return Finding("GPU", State.OK, f"{found}; the bundled model needs none")
    remedy = "use a machine with a GPU" + ", or unset CUDA_VISIBLE_DEVICES" * bool(gpus.hidden)
    return Finding("GPU", State.WARNING, f"{found}: the run samples and trains on the CPU, many times slower", remedy)


def _with_gpu(gpus: Gpus, builds: Builds, is_usable: bool) -> Finding:
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus.devices))
    here = f"{len(gpus.devices)} × {names}, driver {gpus.devices[0].driver}"
    if gpus.cuda:
        here += f" (CUDA {dotted(gpus.cuda)})"
    if builds.cuda is None or builds.vllm_on_cpu:
        package = f"torch {builds.torch}" if builds.cuda is None else "vLLM"
        found = f"{here}, but {package} is a build without CUDA: the run would use the CPU"
        return Finding("GPU", State.ERROR, found, SETUP.format("gpu", "gpu"))
    return _with_cuda(here, gpus.cuda, builds.torch, builds.cuda, is_usable)


def _with_cuda(here: str, supported: Version | None, torch: str, built: Version, is_usable: bool) -> Finding:
    """`supported`: the driver's newest CUDA. Within a major version, an older driver runs what is compiled already."""
    build = f"torch {torch} (CUDA {dotted(built)})"
    update = f"update the NVIDIA driver to one for CUDA {dotted(built)} or newer"
    if supported and built[0] > supported[0]:
        remedy = f"{update}, or install torch and vLLM for CUDA {dotted(supported)}"
        return Finding("GPU", State.ERROR, f"{here} is too old for {build}", remedy)
    if not is_usable:
        remedy = f"correct CUDA_VISIBLE_DEVICES if it is set, or {update}"
        more = "python -c 'import torch; torch.cuda.init()' tells the reason"
        return Finding("GPU", State.ERROR, f"{here}, but {build} reaches no GPU", f"{remedy}; {more}")
    if supported and built > supported:
        found = f"{here} is older than {build}: kernels compiled at run time may fail"
        return Finding("GPU", State.WARNING, found, update)
    return Finding("GPU", State.OK, f"{here}; {build}")


def check_gpu_memory(use: GpuUse, smallest: float) -> Finding:
    """`smallest`: bytes of the smallest GPU."""
    check, room = f"GPU memory: {use.what}", use.share * smallest
    part = "" if use.share == 1 else f", {use.share:.2g} of {size_text(smallest)}"
    found = f"{size_text(use.least)} by estimate, of {size_text(room)}{part}"
    if use.least > room:
        return Finding(check, State.ERROR, found, use.remedy)
    if use.usual > room:
        more = f"{found}; as set it may take {size_text(use.usual)}"
        return Finding(check, State.WARNING, more, use.usual_remedy)
    if use.least > TIGHT * room:
        return Finding(check, State.WARNING, f"{found}: tight", use.remedy)
    return Finding(check, State.OK, found)


def check_places(engine: Engine, gpus: Sequence[str], trains_beside_servers: bool) -> Finding:
    """On which GPUs the run puts its servers, and the trainer that runs beside them."""
    beside = beside_trainer(gpus)
    try:
        found = described(replica_gpus(engine, gpus), engine.servers_per_gpu)
        if trains_beside_servers:
            there = described(replica_gpus(engine, beside.servers), engine.servers_per_gpu)
            found = f"{found}; during reinforcement the trainer on GPU {beside.trainer[0]}, {there}"
    except TooFewGpus as error:
        return Finding("GPUs of servers", State.ERROR, *split_message(str(error)))
    return Finding("GPUs of servers", State.OK, found)


def check_workers(workers: Workers, gpus: Sequence[int] | str) -> Finding:
    """`gpus`: of each node of the Ray cluster, or why there is none."""
    if isinstance(gpus, str):
        return Finding("workers", State.ERROR, *split_message(gpus))
    found = f"Ray at {workers.ray_address}: {len(gpus)} nodes with {', '.join(map(str, gpus))} GPUs"
    if len(gpus) < workers.training_nodes:
        remedy = "lower engine.workers.training_nodes, or add nodes"
        return Finding("workers", State.ERROR, f"{found}; training takes {workers.training_nodes} nodes", remedy)
    return Finding("workers", State.OK, found)


def check_gpu_is_free(gpu: Gpu, share: float) -> Finding | None:
    """Whether `share` of the memory, which the servers reserve, is free now; None if nothing is in the way."""
    if gpu.total is None or gpu.free is None or gpu.free >= share * gpu.total:
        return None
    found = f"{size_text(gpu.free)} of GPU {gpu.number} are free; vLLM asks for {size_text(share * gpu.total)}"
    remedy = "end the programs that nvidia-smi lists, or lower engine.gpu_memory_utilization"
    return Finding("GPU memory in use", State.WARNING, found, remedy)


def check_disk(root: Path, free: float, needed: float | None) -> Finding:
    """`needed`: bytes of checkpoints and the trainer's state by estimate; None if the model's size is unknown."""
    found = f"{size_text(free)} free at {root}"
    if needed is None:
        return Finding("disk", State.WARNING, f"{found}; the need is unknown without the model's size")
    found = f"{found}; checkpoints and the trainer's state take {size_text(needed)} by estimate"
    remedy = "free some, or set storage.root to a larger disk"
    if free < needed:
        return Finding("disk", State.ERROR, found, remedy)
    if free < 2 * needed:
        return Finding("disk", State.WARNING, f"{found}: tight", remedy)
    return Finding("disk", State.OK, found)


def check_rollout_store(url: str, mount: Mount | None) -> Finding:
    """`mount`: the network file system that holds an SQLite store, if one does."""
    if mount:
        found = f"{url} is on {mount.point} ({mount.kind}, a network file system): SQLite loses rows there"
        return Finding("rollout store", State.ERROR, found, REMEDY)
    return Finding("rollout store", State.OK, url)


def split_message(message: str) -> tuple[str, str]:
    """A ReadableError's text as what was found and what to do."""
    found, _, remedy = message.rpartition("; ")
    return (found, remedy) if found else (remedy, "")


def size_text(size: float) -> str:
    """Three digits, in MB or GB."""
    if size < 1e8:
        return f"{size / 1e6:.3g} MB"
    return f"{size / 1e9:,.0f} GB" if size >= 1e11 else f"{size / 1e9:.3g} GB"


def dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
