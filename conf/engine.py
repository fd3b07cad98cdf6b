"""Settings of the inference engine and of storage, and checks that lengths fit the context."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from conf.base import Positive, PositiveFloat, Settings, Share
from conf.redaction import without_password
from conf.sampling import Sampling
from conf.training import Training

SavedUrl = Annotated[str, AfterValidator(without_password)]
"""A URL that is saved with the run and must not contain a password."""


REQUEST_SECONDS, SECONDS_PER_TOKEN = 900.0, 0.25
"""Default request timeout: fixed seconds, plus seconds for each token that the request may generate on a busy
server."""
MIN_PROMPT_TOKENS = 256
"""Tokens that the settings must leave for a prompt with its exit or closing text."""


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
    """Maximum number of concurrent completions per server (vLLM's `max_num_seqs`)."""
    kv_cache_gib: Positive = 1
    """Size of the KV cache on a CPU in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Fraction of GPU memory for all servers of the run together. No effect on a CPU."""
    servers_per_gpu: Positive = 1
    """Number of servers that run at the same time. They share GPU memory, or CPU cores, equally."""
    start_timeout: PositiveFloat = 600
    """Seconds to wait for a server to become ready."""
    request_timeout: PositiveFloat | None = None
    """Seconds to wait for a response. Default: 900, plus 0.25 for each token that the request may generate. Not from
    the paper."""
    max_failed_fraction: Share = 0.05
    """Maximum fraction of a step's rows that may fail because a request is rejected, times out or is interrupted.
    Failed rows are skipped and counted by reason. The run ends if more than one row fails and the fraction is exceeded.
    Not from the paper."""

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


def validate_training_length(name: str, training: Training, traces: Sampling) -> None:
    """Raises ValueError if the longest of `traces` does not fit into a row of `training`."""
    if training.max_length < traces.max_tokens + MIN_PROMPT_TOKENS:
        raise ValueError(
            f"{name}.max_length ({training.max_length}) holds no trace of sampling.max_tokens ({traces.max_tokens}) "
            f"with {MIN_PROMPT_TOKENS} tokens for the prompt; longer rows are dropped; raise the first or lower the "
            f"second"
        )


class Storage(Settings):
    """Where results are stored. References hold full paths, so results moved to another folder are computed again."""

    RENAMED: ClassVar[dict[str, str]] = {"rollouts": "rollout_store"}

    root: SavedUrl = "runs"
    """Folder or fsspec URL for artifacts. With a URL, the run directory itself stays local, under `runs`."""
    rollout_store: SavedUrl = ""
    """SQLAlchemy URL of the rollout store. Empty: an SQLite file in `root`, or under `runs` if `root` is a URL."""
