"""Settings of the inference engine and of storage, and checks that lengths fit the context."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share
from conf.redaction import without_password
from conf.sampling import Sampling
from conf.training import Training
from conf.workers import Workers

SavedUrl = Annotated[str, AfterValidator(without_password)]
"""A URL that is saved with the run and must not contain a password."""


REQUEST_SECONDS, SECONDS_PER_TOKEN = 900.0, 0.25
"""Default request timeout: fixed seconds, plus seconds for each token that the request may generate on a busy
server."""
MIN_PROMPT_TOKENS = 256
"""Tokens that the settings must leave for a prompt with its exit or closing text."""
OWN_VLLM_ARGS = {
    "model": "model",
    "dtype": "engine.dtype",
    "seed": "engine.seed",
    "max-model-len": "engine.max_model_len",
    "max-num-seqs": "engine.max_num_seqs",
    "gpu-memory-utilization": "engine.gpu_memory_utilization",
    "tensor-parallel-size": "engine.tensor_parallel_size",
    "data-parallel-size": "engine.replicas",
    "api-server-count": "engine.replicas",
    "tokenizer": "model",
}
"""Arguments of vLLM that are settings here, with the name of the setting."""
FIXED_VLLM_ARGS = frozenset(
    {
        "host",
        "port",
        "uds",
        "api-key",
        "config",
        "served-model-name",
        "generation-config",
        "worker-extension-cls",
        "enable-prefix-caching",
        "pipeline-parallel-size",
        "trust-remote-code",
        "middleware",
        "block-size",
        "disable-uvicorn-access-log",
    }
)
"""Arguments that would break what this software relies on, or let others reach the server."""


FIXED_FAMILIES = ("data-parallel", "node", "nnodes", "master", "headless", "grpc", "device", "no-enable", "disable-log")
"""Beginnings of the names of others: several nodes, other devices, the statistics that costs are reckoned from."""
SPEED_VLLM_ARGS = frozenset(
    {
        "max-num-batched-tokens",
        "enforce-eager",
        "async-scheduling",
        "no-async-scheduling",
        "compilation-config",
        "disable-custom-all-reduce",
        "distributed-executor-backend",
        "safetensors-load-strategy",
    }
)
"""Arguments that change speed alone, not what is sampled."""


def validate_vllm_args(args: tuple[str, ...]) -> tuple[str, ...]:
    """`args`, if all are arguments that a user may add. vLLM also takes unique beginnings of names.

    Raises ValueError.
    """
    if args and not args[0].startswith("--"):
        raise ValueError(f"{args[0]!r}: write the long name, as in --kv-cache-dtype")
    for arg in args:
        if not arg.startswith("-"):
            continue
        name = _name(arg)
        if not arg.startswith("--") or not name:
            raise ValueError(f"{arg!r}: write the long name, as in --kv-cache-dtype")
        if setting := next((own for taken, own in OWN_VLLM_ARGS.items() if taken.startswith(name)), None):
            raise ValueError(f"{arg!r} is set by {setting}")
        if (
            any(taken.startswith(name) for taken in FIXED_VLLM_ARGS)
            or "lora" in name
            or name.startswith(FIXED_FAMILIES)
        ):
            raise ValueError(f"{arg!r} cannot be changed: runs rely on it")
    return args


def _name(arg: str) -> str:
    """The name of an argument, in vLLM's first spelling: it also takes `_` for `-`, and `name=value`."""
    return arg.removeprefix("--").split("=")[0].replace("_", "-")


def _changes_numbers(args: tuple[str, ...]) -> list[str]:
    """Those of `args` that may change a model's numbers, with their values."""
    kept, is_kept = [], False
    for arg in args:
        is_kept = _name(arg) not in SPEED_VLLM_ARGS if arg.startswith("--") else is_kept
        if is_kept:
            kept.append(arg)
    return kept


class Engine(Settings):
    """The run's own vLLM servers, and remote ones. A different `dtype` counts as a different model and needs new
    samples."""

    RENAMED: ClassVar[dict[str, str]] = {
        "context": "max_model_len",
        "concurrency": "max_num_seqs",
        "gpu_memory": "gpu_memory_utilization",
        "side_by_side": "servers_per_gpu",
    }

    endpoints: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+")], ...] = ()
    """URLs of remote vLLM servers that serve the base model under its fingerprint (docs/rollouts.md). Trained models
    always run on the run's own server. Empty: the base model does too."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """vLLM's `seed`, for the run's own servers. Default: the run's seed. Per-request seeds are not used because they
    crash vLLM on a CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of weights and computation. Use float32 on a CPU, bfloat16 for 7 B models on a GPU."""
    max_model_len: Positive = 2048
    """Maximum length of prompt + completion in tokens (vLLM's `max_model_len`)."""
    max_num_seqs: Positive = 256
    """Maximum number of concurrent completions per server (vLLM's `max_num_seqs`). Fewer run where the KV cache holds
    no more."""
    kv_cache_gib: Positive = 1
    """Size of the KV cache on a CPU in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Fraction of GPU memory for all servers of the run together. No effect on a CPU."""
    tensor_parallel_size: Positive = 1
    """Number of GPUs that share each server's model (vLLM's `tensor_parallel_size`), for models too large for one."""
    replicas: Positive | None = None
    """Number of the run's own servers of a model, each on GPUs of its own. All serve the same weights, and the rollouts
    of one trace go to one of them. Default: as many as fit the visible GPUs; 1 on a CPU."""
    vllm_args: Annotated[tuple[str, ...], AfterValidator(validate_vllm_args)] = ()
    """Further arguments of `vllm serve` for the run's own servers, as on its command line:
    `["--kv-cache-dtype", "fp8"]`. Those that may change a model's numbers make it a different model, which needs new
    samples."""
    servers_per_gpu: Positive = 1
    """Number of servers that run at the same time. They share GPU memory, or CPU cores, equally."""
    workers: Workers = Workers()
    start_timeout: PositiveFloat = 600
    """Seconds to wait for a server to become ready."""
    request_timeout: PositiveFloat | None = None
    """Seconds to wait for a response. Default: 900, plus 0.25 for each token that the request may generate. Not from
    the paper."""
    max_failed_fraction: Share = 0.05
    """Maximum fraction of a step's rows that may fail because a request is rejected, times out or is interrupted.
    Failed rows are skipped and counted by reason. The run ends if more than one row fails and the fraction is exceeded.
    Not from the paper."""

    @property
    def numerics(self) -> str:
        """What changes a model's numbers; part of its fingerprint."""
        return " ".join((self.dtype, *_changes_numbers(self.vllm_args)))

    @property
    def gpus_of_worker(self) -> int:
        """GPUs of each of `workers`, where there are any."""
        return self.workers.gpus_each or self.tensor_parallel_size * (self.replicas or 1)

    @model_validator(mode="after")
    def _validate_workers(self) -> Self:
        needed = self.tensor_parallel_size * (self.replicas or 1)
        if self.workers.kind != "none" and self.gpus_of_worker < needed:
            raise ValueError(
                f"workers.gpus_each ({self.gpus_of_worker}) is less than tensor_parallel_size × replicas ({needed}); "
                "raise it, or lower one of them"
            )
        return self

    def timeout_for(self, max_tokens: int) -> float:
        """Timeout in seconds of a request that may generate `max_tokens` tokens."""
        return self.request_timeout or REQUEST_SECONDS + SECONDS_PER_TOKEN * max_tokens


def validate_fits_context(name: str, sampling: Sampling, engine: Engine, trace: int = 0) -> None:
    """Raises ValueError if prompt, `trace` tokens and completion may exceed the engine's context."""
    if trace + sampling.max_tokens + MIN_PROMPT_TOKENS > engine.max_model_len:
        raise ValueError(
            f"{name}.max_tokens ({sampling.max_tokens}{f' after a trace of {trace}' if trace else ''}) leaves "
            f"less than {MIN_PROMPT_TOKENS} tokens for the prompt in engine.max_model_len ({engine.max_model_len}); "
            f"lower the first or raise the second"
        )


def validate_training_length(name: str, training: Training, trace: int, limit: str = "sampling.max_tokens") -> None:
    """Raises ValueError if `trace` tokens, which the setting `limit` allows, do not fit into a row of `training`."""
    if training.max_length < trace + MIN_PROMPT_TOKENS:
        raise ValueError(
            f"{name}.max_length ({training.max_length}) holds no trace of {limit} ({trace}) with {MIN_PROMPT_TOKENS} "
            f"tokens for the prompt; longer rows are dropped; raise the first or lower the second"
        )


class Storage(Settings):
    """Where results are stored. References hold full paths, so results moved to another folder are computed again."""

    RENAMED: ClassVar[dict[str, str]] = {"rollouts": "rollout_store"}

    root: SavedUrl = "runs"
    """Folder or fsspec URL for artifacts. With a URL, the run directory itself stays local, under `runs`."""
    rollout_store: SavedUrl = ""
    """SQLAlchemy URL of the rollout store. Empty: an SQLite file in `root`, or under `runs` if `root` is a URL."""
    max_fetched_gb: PositiveFloat = 200
    """Largest size in GB of all copies of artifacts that this machine keeps if `root` is a URL, under `runs/fetched`.
    Those in use are never removed. Not from the paper."""
