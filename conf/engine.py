"""The engine that samples, the storage, and whether lengths fit."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from conf.base import Positive, PositiveFloat, Settings, Share
from conf.redaction import without_password
from conf.sampling import Sampling
from conf.training import Training

SavedUrl = Annotated[str, AfterValidator(without_password)]


REQUEST_SECONDS, SECONDS_PER_TOKEN = 900.0, 0.25
"""Seconds that a request may take: for itself, and for each token that it may draw on a server whose seats are all
taken."""
MIN_PROMPT_TOKENS = 256
"""Tokens that settings must leave for a prompt with its exit or closing text."""


class Engine(Settings):
    """The vLLM server that one run owns, and others that it may use: speed and memory. Another `dtype` is another
    model, and sampled anew."""

    RENAMED: ClassVar[dict[str, str]] = {
        "context": "max_model_len",
        "concurrency": "max_num_seqs",
        "gpu_memory": "gpu_memory_utilization",
        "side_by_side": "servers_per_gpu",
    }

    endpoints: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+")], ...] = ()
    """URLs of vLLM servers that run elsewhere and serve the base model under its fingerprint (docs/rollouts.md). What a
    run trains is served by its own server. Empty: so is the base."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """vLLM's, of a server of the run's own. Not given: the run's. Seeds of single requests would end vLLM on a CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights and arithmetic. float32 on a CPU; bfloat16 for 7 B models on a GPU."""
    max_model_len: Positive = 2048
    """Longest prompt + completion in tokens."""
    max_num_seqs: Positive = 256
    """Completions in flight at once, on each server."""
    kv_cache_gib: Positive = 1
    """Room for the KV cache on a CPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of GPU memory, for all servers of the run together; without effect on a CPU."""
    servers_per_gpu: Positive = 1
    """Servers that the run needs at the same time: each gets its part of the memory on a GPU, of the cores on a CPU."""
    start_timeout: PositiveFloat = 600
    """Seconds until a server that is not ready counts as failed."""
    request_timeout: PositiveFloat | None = None
    """Seconds until a request without reply counts as failed. Not given: 900, and a quarter for each token that it may
    draw, so that the longest completion has time on a full server. Not from the paper."""
    max_failed_fraction: Share = 0.05
    """Rows of a step that may fail, since one of their requests is refused, times out or is broken off. They are set
    aside and counted by reason; above this share, and more than one, the run ends. Not from the paper."""

    def timeout_for(self, max_tokens: int) -> float:
        """Seconds within which a request for so many tokens must be answered."""
        return self.request_timeout or REQUEST_SECONDS + SECONDS_PER_TOKEN * max_tokens


def validate_fits_context(name: str, sampling: Sampling, engine: Engine, trace: int = 0) -> None:
    """Raises ValueError when prompt, `trace` and completion may be longer than the engine's context."""
    if trace + sampling.max_tokens + MIN_PROMPT_TOKENS > engine.max_model_len:
        raise ValueError(
            f"{name}.max_tokens ({sampling.max_tokens}{f' after a trace of {trace}' if trace else ''}) leaves "
            f"less than {MIN_PROMPT_TOKENS} tokens for the prompt in engine.max_model_len ({engine.max_model_len}); "
            f"lower the first or raise the second"
        )


def validate_training_length(name: str, training: Training, traces: Sampling) -> None:
    """Raises ValueError where the longest of `traces` would not fit into a row of `training`."""
    if training.max_length < traces.max_tokens + MIN_PROMPT_TOKENS:
        raise ValueError(
            f"{name}.max_length ({training.max_length}) holds no trace of sampling.max_tokens ({traces.max_tokens}) "
            f"with {MIN_PROMPT_TOKENS} tokens for the prompt; such rows would all be dropped as too long; raise the "
            f"first or lower the second"
        )


class Storage(Settings):
    """Where results live. References hold full paths: what is moved to another place is made anew there."""

    RENAMED: ClassVar[dict[str, str]] = {"rollouts": "rollout_store"}

    root: SavedUrl = "runs"
    """A folder or an fsspec URL for artifacts; with a URL, the run's own folder stays local under `runs`."""
    rollout_store: SavedUrl = ""
    """SQLAlchemy URL of the rollout store; empty: an SQLite file in `root`, or under `runs` when `root` is a URL."""
