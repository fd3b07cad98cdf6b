"""`brevity doctor`: checks before anything is spent whether this machine can do a run. Starts and downloads nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.utils import get_protocol
from rich.table import Table
from rich.text import Text

from conf.base import Settings
from conf.errors import ReadableError
from conf.multi_seed import experiment
from conf.prompts import BUNDLED_MODELS
from flows.doctor import facts
from flows.doctor.checks import (
    Finding,
    State,
    check_disk,
    check_driver,
    check_gpu_is_free,
    check_gpu_memory,
    check_places,
    check_rollout_store,
    check_workers,
    split_message,
)
from flows.doctor.services import check_hub, check_llm, check_prefect, check_server
from flows.needs import data_sets, disk_bytes, gpu_uses, llms, model_names, trains_beside_servers
from flows.settings_table import console
from models.checkpoints.checkpoint import Checkpoint, found_checkpoint, is_on_hub
from models.checkpoints.files import CheckpointError, printable
from models.file_systems import network_mount
from models.inference.dispatcher import ServerFailed
from models.inference.remote_servers import base_url, key_headers, served_models
from models.llm.endpoint import LlmFailed
from tasks.runtime.run_directory import local_root, rollout_store_url

STYLES = {State.OK: "green", State.WARNING: "yellow", State.ERROR: "bold red"}
Models = Mapping[str, Checkpoint]
"""By name, those that are on this machine; without fingerprints."""


class NotReady(ReadableError):
    """The machine cannot do the run."""


def check_machine(settings: Settings) -> None:
    """Prints all findings. Raises NotReady where one is an error."""
    findings = list(findings_of(settings))
    console().print(_table(findings))
    failed = [finding.check for finding in findings if finding.state is State.ERROR]
    if failed:
        raise NotReady(f"this run cannot be done here like this: {', '.join(failed)}; see the table for what to do")


def _table(findings: list[Finding]) -> Table:
    table = Table("check", "state", "found", "what to do", show_lines=True)
    for finding in findings:
        check, found, remedy = (Text(printable(text)) for text in (finding.check, finding.found, finding.remedy))
        table.add_row(check, Text(finding.state.value, style=STYLES[finding.state]), found, remedy)
    return table


def findings_of(settings: Settings) -> Iterator[Finding]:
    run = experiment(settings)
    models, unavailable = _local_models(model_names(run))
    yield from unavailable
    yield from _gpu(settings, models)
    if run.engine.workers.kind == "ray":
        yield check_workers(run.engine.workers, facts.ask_ray(run.engine.workers.ray_address))
    yield from _storage(settings, models)
    missing = [name for name in model_names(run) if name not in models and is_on_hub(name)]
    yield check_hub(missing, data_sets(run), facts.has_hub_token(), facts.is_hub_offline())
    yield from _servers(run, models)
    yield from _llms(run)
    yield _prefect()


def _local_models(names: list[str]) -> tuple[dict[str, Checkpoint], list[Finding]]:
    """The models that are on this machine, and a finding for each of the others."""
    models: dict[str, Checkpoint] = {}
    unavailable: list[Finding] = []
    for name in names:
        try:
            models[name] = Checkpoint.without_fingerprint(found_checkpoint(name, local_only=True))
        except CheckpointError as error:
            unavailable.append(_unavailable(name, error))
    return models, unavailable


def _unavailable(name: str, error: CheckpointError) -> Finding:
    if is_on_hub(name):
        remedy = f"`brevity check-model {name}` downloads and checks it; then ask again"
        found = f"{name} is not complete on this machine: its memory and disk cannot be estimated"
        return Finding("model", State.WARNING, found, remedy)
    found, remedy = split_message(str(error))
    return Finding("model", State.ERROR, found, remedy)


def _gpu(settings: Settings, models: Models) -> Iterator[Finding]:
    run, gpus, builds = experiment(settings), facts.read_gpus(), facts.read_builds()
    has_cuda = bool(gpus.devices) and builds.cuda is not None
    is_bundled = set(model_names(run)) <= set(BUNDLED_MODELS)
    yield check_driver(gpus, builds, has_cuda and facts.is_cuda_usable(), is_bundled)
    if not gpus.devices:
        return
    yield check_places(run.engine, [str(gpu.number) for gpu in gpus.devices], trains_beside_servers(run))
    if gpus.smallest is None:
        yield Finding("GPU memory", State.WARNING, "nvidia-smi does not tell its size", "compare with check-model")
        return
    for use in gpu_uses(settings, models, len(gpus.devices)):
        yield check_gpu_memory(use, gpus.smallest)
    for gpu in gpus.devices:
        if busy := check_gpu_is_free(gpu, run.engine.gpu_memory_utilization):
            yield busy


def _storage(settings: Settings, models: Models) -> Iterator[Finding]:
    storage = experiment(settings).storage
    root = local_root(storage.root, is_local=get_protocol(storage.root) in ("file", "local"))
    model = models.get(model_names(experiment(settings))[0])
    yield check_disk(root, facts.free_bytes(root), disk_bytes(settings, model) if model else None)
    url = rollout_store_url(storage, root)
    yield check_rollout_store(url, network_mount(url))


def _servers(run: Any, models: Models) -> Iterator[Finding]:
    """The digest of all weights, which is the fingerprint, is made only where there are servers."""
    if not run.engine.endpoints:
        return
    model = models.get(model_names(run)[0])
    fingerprint = Checkpoint.open(model.folder, run.engine.numerics).fingerprint if model else None
    for url in map(base_url, run.engine.endpoints):
        try:
            yield check_server(url, served_models(url, key_headers()), fingerprint)
        except ServerFailed as error:
            yield check_server(url, None, fingerprint, str(error))


def _llms(run: Settings) -> Iterator[Finding]:
    for llm in llms(run):
        try:
            yield check_llm(llm, *facts.ask_llm(llm))
        except LlmFailed as error:
            yield Finding(f"{llm.SECTION_NAME}.url", State.ERROR, *split_message(str(error)))


def _prefect() -> Finding:
    if url := os.environ.get("PREFECT_API_URL"):
        return check_prefect(url, *facts.ask_prefect(url))
    return Finding("Prefect", State.OK, "PREFECT_API_URL is not set: a private server is started for the run")
