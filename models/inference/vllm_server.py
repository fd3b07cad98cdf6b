"""A vLLM server owned by this process: started when needed, one model at a time, weight swaps verified.

It listens on a Unix socket in a folder that nobody else may enter: the development endpoints that swap weights
(VLLM_SERVER_DEV_MODE) must never face a network, nor another user of this machine.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson

from conf.engine import Engine as EngineSettings
from conf.errors import ReadableError
from conf.problems import MAX_IMAGES
from models.checkpoints.adapters import MAX_RANK
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.tokenizer import is_loaded_wrongly
from models.inference.connections import UNIX, client
from models.inference.devices import VISIBLE, on_cpu
from models.inference.dispatcher import JSON, Reply, ServerFailed, path_and_body, read_log_probs
from models.inference.sync_check import SyncCheck, sync_check_of
from models.processes import GuardedProcess, threads

logger = logging.getLogger(__name__)
SYNC_CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Largest allowed difference between the trainer's and the server's log-probs. The half-precision bounds have not been
measured on hardware."""
REPLICA_STRIDE = 1_000_003
"""Between the seeds of two replicas: more than the starts of one."""
WEIGHTS = "policy"
"""Name under which the weights are served; adapters have names of their own."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for its largest rank."""
PROFILED_SIDE = 1120
"""Pixels: an image of 1,600 tokens, more than `problems.images.max_pixels` allows by default."""
NO_DOMAIN = "no.domain.invalid"
"""For a list of domains that images may be fetched from: vLLM takes an empty one as permission for all."""
SIGNALLED = 128
"""Exit codes above it: ended by the signal of that number more."""
ERROR_LINE = re.compile(
    r"^(?:\([^)\n]*\) )?(?:ERROR .*?\] )?([\w.]*(?:Error|Exception): (?:.*validation errors? for .*\n)?.*)$",
    re.MULTILINE,
)
"""The last line of a traceback, with or without vLLM's prefixes."""


class ServerCannotStart(ServerFailed):
    """The server ended by itself when it was started, twice: the model or the settings do not suit this machine."""


class WeightSyncError(ReadableError):
    """The served weights are not those of the checkpoint."""


class VllmServer:
    """An `Endpoint` on the GPUs that it is given."""

    is_ours = True

    def __init__(
        self,
        settings: EngineSettings,
        log: Path,
        before_start: Callable[[], None] = lambda: None,
        gpus: Sequence[str] = (),
        replica: int = 0,
        lora_rank: int = 0,
    ):
        """`before_start` is called before each start of the server, and may wait. `gpus`: as CUDA_VISIBLE_DEVICES names
        them; none on a CPU. `replica`: its number among the servers of one model. `lora_rank`: largest rank of adapters
        that it will have to serve, to save a restart when the first comes."""
        self._settings, self._before_start = settings, before_start
        self._log = log
        self.gpus = tuple(gpus)
        self._replica, self._expected_rank = replica, lora_rank
        self._lora_rank = 0
        """Largest rank of adapters that the running server can serve."""
        self.name, self._loaded = WEIGHTS, ""
        """The name of what is served, and that of the adapters that are loaded."""
        self._process: GuardedProcess | None = None
        self._starts = 0
        self._served: Checkpoint | None = None
        self._changes = threading.Lock()
        """Held while the server is started or its weights are changed: sessions side by side share it."""
        self._folder = tempfile.TemporaryDirectory(prefix="brevity-")  # for this user only
        self._socket = Path(self._folder.name) / "vllm.sock"
        self.url = f"{UNIX}{self._socket}"
        self.headers: dict[str, str] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the guard; None while no server runs."""
        return self._process.pid if self._process else None

    @property
    def max_concurrency(self) -> int:
        """See `Endpoint.max_concurrency`."""
        return self._settings.max_num_seqs

    def is_serving(self) -> bool:
        """See `Endpoint.is_serving`."""
        return self._served is not None and self._is_running()

    def restart(self, closed: threading.Event) -> None:
        """Restarts the server with the model it served, unless `closed` is set, or another session is doing so. Raises
        ServerFailed."""
        is_restarting, starts = self._changes.locked(), self._starts
        with self._changes:
            if (is_restarting or self._starts != starts) and self._is_running() and self._is_ready():
                return
            if (model := self._served) is None:
                raise ServerFailed(f"the vLLM server could not be started again; see {self._log}")
            self.close()
            if not closed.is_set():
                self._served = None
                self._start(model)
                self._served = model

    def close(self) -> None:
        if self._process:
            self._process.end()
            self._process = None

    def serve(self, model: Checkpoint) -> None:
        """Serves `model`: in the place of the model that was served if that can be verified, else by a restart. Raises
        ServerFailed, WeightSyncError."""
        with self._changes:
            if self._served and self._served.fingerprint == model.fingerprint and self._is_running():
                return
            # Unknown until the new weights are verified.
            served, self._served = self._served, None
            if not (served and self._is_running() and self._replace(served, model)):
                self.close()
                self._start(model)
            self._served = model

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self, model: Checkpoint) -> None:
        """Starts the server and waits until it serves. Raises ServerCannotStart, ServerFailed, WeightSyncError."""
        self._before_start()
        log_begins = self._log.stat().st_size if self._log.exists() else 0
        code = self._launch(model)
        if _has_ended_itself(code):
            logger.warning("the vLLM server ended when it was started; started once more, see %s", self._log)
            code = self._launch(model)
        if code is None:
            if model.adapter:
                self._load_adapter(model)
            self._check_weight_sync(model, None)
            return
        self.close()
        if not _has_ended_itself(code):  # for want of the machine's memory, for example
            raise ServerFailed(f"the vLLM server was killed before it was ready; see {self._log}")
        reasons = causes(self._log.read_bytes()[log_begins:].decode(errors="replace"))
        raise ServerCannotStart(f"the vLLM server ends when it is started; see {self._log}:\n{reasons}")

    def _launch(self, model: Checkpoint) -> int | None:
        """Starts the process, and waits until it is ready (None) or has ended (its exit code). Raises ServerFailed
        after `engine.start_timeout`."""
        self._socket.unlink(missing_ok=True)
        self._starts += 1
        self.name, self._loaded = WEIGHTS, ""
        self._lora_rank = max(self._expected_rank, model.rank)
        self._process = process = GuardedProcess(self._command(model), self._log, self._environment())
        deadline = time.monotonic() + self._settings.start_timeout
        while not self._is_ready():
            if (code := process.poll()) is not None:
                return code
            if time.monotonic() > deadline:
                self.close()
                waited = f"{self._settings.start_timeout:g} s (engine.start_timeout)"
                raise ServerFailed(f"the vLLM server was not ready after {waited}; see {self._log}")
            time.sleep(0.2)
        return None

    def _is_ready(self) -> bool:
        try:
            with client(self.url, timeout=2) as http:
                return http.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _command(self, model: Checkpoint) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "models.inference.vllm_main",
            "--model",
            str(model.folder),
            "--served-model-name",
            WEIGHTS,
            "--uds",
            str(self._socket),
            "--dtype",
            self._settings.dtype,
            "--max-model-len",
            str(self._settings.max_model_len),
            "--max-num-seqs",
            str(self._settings.max_num_seqs),
            "--enable-prefix-caching",
            "--worker-extension-cls",
            "models.inference.vllm_worker.WeightSwap",
            "--generation-config",
            "vllm",
            "--disable-uvicorn-access-log",
            # Neither a restarted server nor another replica may repeat its samples.
            "--seed",
            str((self._settings.seed + self._starts + REPLICA_STRIDE * self._replica) % 2**32),
            *self._tokenizer(model),
            *self._lora_args(),
            *_image_args(model),
            *self._settings.vllm_args,
        ]
        if on_cpu():
            # A worker in a process of its own would spin beside the engine and take the cores that the engine waits
            # for.
            return [
                *command,
                "--block-size",
                str(block_size()),
                "--enforce-eager",
                "--distributed-executor-backend",
                "uni",
            ]
        return [
            *command,
            "--tensor-parallel-size",
            str(self._settings.tensor_parallel_size),
            "--gpu-memory-utilization",
            str(self._settings.gpu_memory_utilization / self._settings.servers_per_gpu),
        ]

    def _lora_args(self) -> list[str]:
        """None where no adapters are to be served: they cost memory, and time in each layer."""
        if not self._lora_rank:
            return []
        if self._lora_rank > MAX_RANK:
            raise ServerCannotStart(
                f"adapters of rank {self._lora_rank} are larger than vLLM serves ({MAX_RANK}); lower lora.r, or set "
                f"lora.merge for the training before"
            )
        rank = next(rank for rank in LORA_RANKS if rank >= self._lora_rank)
        return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank)]

    def _tokenizer(self, model: Checkpoint) -> list[str]:
        """vLLM matches stop strings with the tokenizer that transformers loads, which may differ from
        tokenizer.json."""
        if not is_loaded_wrongly(model.folder):
            return []
        folder = self._log.with_suffix(".tokenizer")
        model.tokenizer.save_pretrained(folder)
        return ["--tokenizer", str(folder)]

    def _environment(self) -> dict[str, str]:
        environment = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(self._settings.kv_cache_gib),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if on_cpu():
            # Oversubscribed cores: with more threads than cores in all, servers wait for each other in every layer.
            # This cut throughput to a quarter.
            own = max(1, threads() // (self._settings.servers_per_gpu * (self._settings.replicas or 1)))
            environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(own)}
        if self.gpus:
            environment |= {VISIBLE: ",".join(self.gpus)}
        return environment

    def _replace(self, served: Checkpoint, model: Checkpoint) -> bool:
        """Serves `model` in the place of `served`. False if its weights cannot be verified."""
        if served.weights_fingerprint == model.weights_fingerprint and not model.adapter:
            self.name = WEIGHTS
            return True
        sync_check = sync_check_of(model)
        if sync_check is None or not self._can_replace(served, model):
            return False
        try:
            before = self._sync_check_log_probs(sync_check)
            if model.adapter:
                self._load_adapter(model)
            else:
                self._post("/collective_rpc", {"method": "swap_weights", "args": [str(model.folder)]})
                self._post("/reset_prefix_cache", {})
                if model.takes_images:
                    # The scheduler would look for images that it believes to be encoded still, and end the engine.
                    self._post("/reset_encoder_cache", {})
            self._check_weight_sync(model, before)
        except (httpx.HTTPError, WeightSyncError) as error:
            logger.warning("weight swap failed, restarting the server: %s", error)
            return False
        return True

    def _can_replace(self, served: Checkpoint, model: Checkpoint) -> bool:
        """Adapters need the weights that are loaded, and room for their rank. Matrices that are wrapped for adapters
        cannot be loaded in place."""
        if model.adapter:
            return served.weights_fingerprint == model.weights_fingerprint and model.rank <= self._lora_rank
        return not self._lora_rank and served.tensor_sizes == model.tensor_sizes

    def _load_adapter(self, model: Checkpoint) -> None:
        """Loads the adapters in the place of those that were loaded before. Raises WeightSyncError."""
        if self._loaded:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
        self.name = self._loaded = f"{WEIGHTS}-{model.fingerprint[:16]}"
        try:
            self._post("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": str(model.adapter)})
        except httpx.HTTPStatusError as error:
            raise WeightSyncError(f"{model.adapter}: vLLM refuses the adapters: {error.response.text[:400]}") from None

    def _checksum_matches(self, model: Checkpoint) -> bool:
        """Whether the checksum of the served weights or adapters is the checkpoint's; False where that of weights
        cannot be read: on a CPU, and with tensor parallelism, where each worker has a part and some parts are on
        several. Raises WeightSyncError for other adapters."""
        from models.checkpoints.weight_checksum import checksum_of_adapter, checksum_of_folder, same_checksum

        dtype = self._settings.dtype
        if model.adapter:
            if not same_checksum(self._checksum("served_adapter_checksum"), checksum_of_adapter(model.adapter, dtype)):
                raise WeightSyncError(f"{model.adapter}: the server has other adapters")
            return True
        if on_cpu() or self._settings.tensor_parallel_size > 1:
            return False
        return same_checksum(self._checksum("served_checksum"), checksum_of_folder(model.folder, dtype))

    def _checksum(self, method: str) -> list[float]:
        """Of the first worker."""
        return self._post("/collective_rpc", {"method": method}).json()["results"][0]

    def _check_weight_sync(self, model: Checkpoint, before: Sequence[float] | None) -> None:
        sync_check = sync_check_of(model)
        if sync_check:
            after, tolerance = self._sync_check_log_probs(sync_check), SYNC_CHECK_TOLERANCE[self._settings.dtype]
            check_weight_sync(
                sync_check.log_probs, before, after, tolerance, model, checksum_matches=self._checksum_matches(model)
            )

    def _sync_check_log_probs(self, sync_check: SyncCheck) -> list[float]:
        text = sync_check.text
        path, body = path_and_body(text, {"max_tokens": 1, "prompt_logprobs": 0})
        reply = Reply.model_validate_json(self._post(path, {"model": self.name, **body}).content)
        try:
            return sync_check.of_text(read_log_probs(text.token_ids, reply))
        except (LookupError, TypeError, ValueError):
            raise WeightSyncError("the server reads the text of the sync check as other tokens") from None

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        with client(self.url, timeout=self._settings.timeout_for(0)) as http:
            return http.post(path, content=content, headers=JSON).raise_for_status()


def _image_args(model: Checkpoint) -> list[str]:
    """For a model that takes images: the route for exact token ids with images, and nothing but images that requests
    bring along. No URL is fetched, and vLLM opens no local file unless it is told a folder."""
    if not model.takes_images:
        return []
    # The sides are what memory is measured for, and no limit.
    limits = json.dumps({"image": {"count": MAX_IMAGES, "width": PROFILED_SIDE, "height": PROFILED_SIDE}, "video": 0})
    return ["--enable-scale-out", "--limit-mm-per-prompt", limits, "--allowed-media-domains", NO_DOMAIN]


def block_size() -> int:
    """Tokens per KV-cache block: vLLM's smallest on a CPU, its default on a GPU."""
    return 32 if on_cpu() else 16


def check_weight_sync(
    expected: Sequence[float],
    before: Sequence[float] | None,
    after: Sequence[float],
    tolerance: float,
    model: Checkpoint,
    checksum_matches: bool = False,
) -> None:
    """Raises WeightSyncError unless the served log-probs are the trainer's within `tolerance`.

    `before`: log-probs before the swap, if there was one. The new ones must then also be less than half as far from the
    trainer's, since a small update may lie within the tolerance. `checksum_matches`: the checksum of the served weights
    is the checkpoint's. Then only the mean difference is checked: half precision can be far off at an unlikely token
    and hides a small update everywhere. So it is in half precision after a start.
    """
    where, differences = model.path, [abs(a - b) for a, b in zip(expected, after, strict=True)]
    is_started_in_half_precision = before is None and tolerance > SYNC_CHECK_TOLERANCE["float32"]
    is_mean = checksum_matches or is_started_in_half_precision
    difference = sum(differences) / len(differences) if is_mean else max(differences)
    if difference > tolerance:
        raise WeightSyncError(f"{where}: log-probs differ from the trainer's by {difference:.2g} > {tolerance:g}")
    if before is None or checksum_matches:
        return
    error_before, error_after = (
        sum(abs(a - b) for a, b in zip(expected, served, strict=True)) for served in (before, after)
    )
    if error_after >= error_before / 2:
        raise WeightSyncError(f"{where}: log-probs are no closer to the trainer's than before the swap")


def _has_ended_itself(code: int | None) -> bool:
    """Whether this is the exit code of a process that no signal ended, neither it nor its guard."""
    return code is not None and 0 <= code <= SIGNALLED


def causes(log: str) -> str:
    """The errors that a server's log names, first and shortened, once each; its end where it names none.

    vLLM's own last error only says that there was one before.
    """
    errors = dict.fromkeys(" ".join(error.split())[:400] for error in ERROR_LINE.findall(log))
    return "\n".join([*errors][:3]) or "\n".join(log.splitlines()[-15:])
