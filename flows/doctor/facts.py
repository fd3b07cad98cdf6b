"""What `brevity doctor` reads from the machine and asks of services. Nothing is started or downloaded."""

from __future__ import annotations

import base64
import csv
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import httpx

from conf.llm import Llm
from conf.redaction import redacted
from flows.doctor.checks import Builds, Gpu, Gpus, Version, visible_gpus
from flows.doctor.services import Reply
from models.checkpoints.files import first_line
from models.inference.devices import VISIBLE, on_cpu
from models.llm.endpoint import key_in

COLUMNS = "index,uuid,name,driver_version,memory.total,memory.free"
MIB = 2**20
NVIDIA = "0x10de"
"""The vendor's number on the PCI bus."""
DISPLAY = "0x03"
"""Beginning of the class numbers of graphics cards and GPUs there."""
TIMEOUT = 5.0
"""Seconds for a reply of a service."""
SLOW = 120.0
"""Seconds for nvidia-smi, and for importing torch: both take long on a busy machine."""


def read_gpus() -> Gpus:
    """The NVIDIA GPUs that the run may use, and the driver."""
    if shutil.which("nvidia-smi") is None:
        return _without_nvidia_smi(_device_files())
    code, listed = _nvidia_smi(f"--query-gpu={COLUMNS}", "--format=csv,noheader,nounits")
    if code and (_device_files() or _has_nvidia_card()):
        return Gpus(problem=f"nvidia-smi fails ({first_line(listed)}); reinstall the NVIDIA driver, or restart")
    devices = parse_gpus("" if code else listed)
    visible = visible_gpus(devices, os.environ.get(VISIBLE))
    cuda = parse_cuda(_nvidia_smi()[1]) if visible else None
    return Gpus(visible, cuda, hidden=len(devices) - len(visible))


def _without_nvidia_smi(device_files: list[str]) -> Gpus:
    if not device_files:
        return Gpus()
    remedy = "install the NVIDIA driver's tools, or in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    return Gpus(problem=f"{', '.join(device_files)} exist, but nvidia-smi is not on the PATH; {remedy}")


def _device_files() -> list[str]:
    """Those of a loaded NVIDIA driver."""
    return sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))


def _has_nvidia_card() -> bool:
    """nvidia-smi fails on machines without a GPU, too."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        if vendor.read_text().strip() == NVIDIA and vendor.with_name("class").read_text().startswith(DISPLAY):
            return True
    return False


def _nvidia_smi(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    try:
        run = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SLOW)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return run.returncode, run.stdout or run.stderr


def parse_gpus(listed: str) -> list[Gpu]:
    """From the lines of `nvidia-smi --query-gpu` with COLUMNS; other lines are messages."""
    rows = [row for row in csv.reader(listed.splitlines(), skipinitialspace=True) if len(row) == 6]
    return [
        Gpu(int(number), uuid, name, driver, _bytes(total), _bytes(free))
        for number, uuid, name, driver, total, free in rows
    ]


def _bytes(mib: str) -> float | None:
    """None for `[N/A]`, as GPUs that share the host's memory report it."""
    return float(mib) * MIB if mib.isdigit() else None


def parse_cuda(header: str) -> Version | None:
    """The newest CUDA version of the driver, from what nvidia-smi prints without arguments."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", header)
    return (int(found[1]), int(found[2])) if found else None


def read_builds() -> Builds:
    """From torch's version file, without importing torch."""
    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    told = runpy.run_path(str(Path(folders[0]) / "version.py")) if folders else {}
    cuda = re.match(r"(\d+)\.(\d+)", told.get("cuda") or "")
    return Builds(told.get("__version__", "none"), (int(cuda[1]), int(cuda[2])) if cuda else None, on_cpu())


def is_cuda_usable() -> bool:
    """Whether torch reaches a GPU. Asked in a process of its own, which a broken driver may crash or block."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SLOW)
    except subprocess.TimeoutExpired:
        return False
    return run.stdout.strip().endswith("True")


def free_bytes(root: Path) -> float:
    """Free space where `root` is, or will be created."""
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def has_hub_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def is_hub_offline() -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def ask_ray(address: str) -> list[int] | str:
    """GPUs of each node of the cluster, or why there is none."""
    try:
        from tasks.runtime.ray_cluster import NoCluster, connect, gpus_of_nodes
    except ImportError:
        return "Ray is not installed here; install the extra `ray` of this package"
    try:
        connect(address)
    except NoCluster as error:
        return str(error)
    return gpus_of_nodes()


def ask_llm(llm: Llm) -> tuple[Reply, bool]:
    """The endpoint's list of models, and whether a key was sent. Raises LlmFailed for what cannot be a key."""
    key = key_in(llm.key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return get(f"{llm.url.rstrip('/')}/models", headers), bool(key)


def ask_prefect(url: str) -> tuple[Reply, Reply, str]:
    """The server's replies to /health and /admin/version, and the client's version."""
    headers = _prefect_headers()
    paths = ("health", "admin/version")
    health, told = (get(f"{url.rstrip('/')}/{path}", headers) for path in paths)
    return health, told, version("prefect")


def _prefect_headers() -> dict[str, str]:
    """As Prefect's client authenticates itself."""
    if auth := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def get(url: str, headers: Mapping[str, str]) -> Reply:
    try:
        reply = httpx.get(url, headers=headers, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Reply(0, redacted(first_line(error)))
    return Reply(reply.status_code, reply.text)
