"""Resources of a run: engines, rollout store, checkpoints, answer check, trainer, auxiliary models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from conf.engine import Engine as EngineSettings
from conf.llm import Llm
from conf.prompts import Prompt
from conf.retries import Retries
from models.checkpoints.adapters import base_fingerprint, holds_adapters
from models.checkpoints.checkpoint import Checkpoint, found_checkpoint, lasting_name
from models.inference.devices import described, on_cpu, replica_gpus, visible_gpus
from models.inference.engine import Engine, FailedRequest, ScorableText
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_executor import FailureBudget, RolloutExecutor, TooManyFailed
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from models.llm.client import LlmClient
from models.llm.reply_store import ReplyStore
from reasoning.answers.verifier import Verifier
from reasoning.records import Problem, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.gpu_slot import GpuSlot
from tasks.runtime.leases import Lease, Leases
from tasks.runtime.progress import Progress

ENGINES = ("engine", "partner_engine")
"""Names of the attributes that hold the run's own engines."""
MakeEngine = Callable[[EngineSettings, Path, Callable[[], None]], Engine]
"""Makes an engine from its settings, a log file, and what it calls before its server starts."""
Train = Callable[[Any, Path, Callable[[int, int], None]], list[dict[str, Any]]]
"""A trainer: from a job, a scratch folder and a callback (step, steps) to the figures of each logged step."""
T = TypeVar("T")


class Workers(Protocol):
    """Workers in other processes, with servers of their own."""

    @property
    def gpus(self) -> int:
        """Of all together."""
        ...

    def close(self) -> None:
        """Ends them and their servers."""
        ...


class Resources:
    """Resources start on first use. `close` ends every process that was started."""

    def __init__(
        self,
        engine: EngineSettings,
        rollouts_url: str,
        prompt: Prompt,
        artifacts: ArtifactStore,
        logs: Path,
        progress: Progress,
        warn: Callable[[str], None],
        retries: Retries,
        make_engine: MakeEngine,
        trainer: Train,
    ):
        self.engine_settings, self.rollouts_url = engine, rollouts_url
        self.prompt = prompt
        """Prompt settings for every model of the run; part of the cache key of each step that reads a model."""
        self.trainer, self.retries, self.make_engine = trainer, retries, make_engine
        # Ray itself gives GPUs to one at a time, and the run's own machine may have none.
        self.gpu_slot = GpuSlot(progress.note, is_needed=engine.workers.kind != "ray")
        self.workers: Workers | None = None
        """Those that take shards of problems, once they are wanted."""
        self.worker_numbers = count()
        """No two workers of a run have the same, also one after another: they sample with seeds that follow from it."""
        self._artifacts, self._logs, self.progress, self._warn = artifacts, logs, progress, warn
        self._llm_clients: dict[str, LlmClient] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self.base_models: dict[str, str] = {}
        """Names of the base models, which this run did not train, by fingerprint."""

    @cached_property
    def engine(self) -> Engine:
        return self._new_engine("vllm.log")

    @cached_property
    def partner_engine(self) -> Engine:
        """A second engine, for the other model of a pair."""
        return self._new_engine("vllm-partner.log")

    def _new_engine(self, name: str) -> Engine:
        log = self._logs / name
        where = described(replica_gpus(self.engine_settings, visible_gpus()), self.engine_settings.servers_per_gpu)
        self.progress.note(f"engine: {where}; starts when needed, log in {log}")
        return self.make_engine(self.engine_settings, log, self.gpu_slot.take)

    @cached_property
    def _leases(self) -> Leases:
        return Leases(self.rollouts_url)

    def lease(self, key: str) -> AbstractContextManager[Lease]:
        """Holds the lease of a step's key. While another run has it, this one gives its GPUs to others."""

        def give_way(holder: str) -> None:
            self.progress.note(f"{key}: another run makes it ({holder}); waits")
            self.close_engines()
            self.gpu_slot.give_back()

        return self._leases.hold(key, give_way)

    @cached_property
    def store(self) -> RolloutStore:
        return RolloutStore(self.rollouts_url)

    @cached_property
    def replies(self) -> ReplyStore:
        """Replies of auxiliary models, in the database of the rollout store."""
        return ReplyStore(self.rollouts_url)

    def llm_client(self, llm: Llm) -> LlmClient:
        """The client for an auxiliary model; one per run, so that no reply is paid for twice."""
        return self._llm_clients.setdefault(llm.model_dump_json(), LlmClient(llm, self.replies))

    @cached_property
    def verifier(self) -> Verifier:
        return Verifier()

    def model(self, name: str) -> ArtifactRef:
        """A base model: a checkpoint folder, `owner/name` on the hub, or `tiny`.

        Raises CheckpointError when it is incomplete, unsupported or unavailable.
        """
        folder = found_checkpoint(name)
        checkpoint = self._open(folder)
        if not checkpoint.name:
            checkpoint = replace(checkpoint, name=lasting_name(name, folder))
        checkpoint.check()
        if unread := checkpoint.prompts.unread:
            self._warn(f"the chat template of {name} does not read {', '.join(unread)} of prompt.template_arguments")
        self._checkpoints[checkpoint.fingerprint] = checkpoint
        self.base_models[checkpoint.fingerprint] = name
        return ArtifactRef(
            kind="base-model", uri=str(checkpoint.path), digest=checkpoint.fingerprint, rows=1, label=Path(name).name
        )

    def _open(self, folder: Path) -> Checkpoint:
        """Adapters share what is loaded of their model, wherever it lies on this machine."""
        if holds_adapters(folder) and (known := base_fingerprint(folder)):
            for opened in self._checkpoints.values():
                if opened.weights_fingerprint == known:
                    return opened.with_adapter(folder)
        return Checkpoint.open(folder, self.engine_settings.numerics, self.prompt)

    def checkpoint(self, ref: ArtifactRef) -> Checkpoint:
        """The opened checkpoint of a reference; opened once per run."""
        if ref.digest not in self._checkpoints:
            self._checkpoints[ref.digest] = self._open(self._artifacts.local_path(ref))
        return self._checkpoints[ref.digest]

    def knows(self, digest: str) -> bool:
        """Whether the model is open."""
        return digest in self._checkpoints

    def engine_for(self, model: Checkpoint) -> Engine:
        """The remote servers for a base model, if the settings name some; else the run's own engine."""
        return self.remote_servers if self._is_remote(model) else self.engine

    def partner_for(self, model: Checkpoint) -> Engine:
        """As `engine_for`, for a model that is needed while `engine` serves another model."""
        return self.remote_servers if self._is_remote(model) else self.partner_engine

    def _is_remote(self, model: Checkpoint) -> bool:
        return bool(self.engine_settings.endpoints) and model.fingerprint in self.base_models

    @cached_property
    def remote_servers(self) -> RemoteServers:
        return RemoteServers(self.engine_settings)

    def run_jobs(
        self,
        stage: str,
        total: int,
        model: Checkpoint,
        jobs: Iterable[tuple[T, SamplingJob]],
        purpose: Purpose,
        seed: int,
        on_usage: Callable[[Usage], None],
        failures: FailureBudget | None = None,
    ) -> Iterator[tuple[T, SamplingJob]]:
        """Yields the jobs in order, each with what came with it, as soon as their plans are complete or their requests
        have failed. Draws `jobs` as they are needed. Raises TooManyFailed.

        `total`: how many jobs; `failures`: where they are a part of a stage, the budget of all. Calls `on_usage` at the
        end with the cost of all jobs.
        """
        advance = self.progress.stage(stage, total, "prompts")
        schedulers = [EngineScheduler(self.engine_for(model), model)]
        failures = failures or self.failure_budget(stage, total)
        rollouts = RolloutExecutor(self.store, schedulers, purpose, seed, advance, failures)
        yield from rollouts.run_in_order(jobs)
        on_usage(rollouts.usage)

    def run_pair(
        self,
        stage: str,
        models: tuple[Checkpoint, Checkpoint],
        jobs: Sequence[SamplingJob],
        purpose: Purpose,
        seed: int,
    ) -> Usage:
        """Samples with both models until the plan of each job is complete or has failed. Returns the cost.

        Raises TooManyFailed.
        """
        advance = self.progress.stage(stage, len(jobs), "problems")
        schedulers = [
            EngineScheduler(self.engine_for(models[0]), models[0]),
            EngineScheduler(self.partner_for(models[1]), models[1]),
        ]
        rollouts = RolloutExecutor(
            self.store, schedulers, purpose, seed, advance, self.failure_budget(stage, len(jobs))
        )
        rollouts.run_to_completion(jobs)
        return rollouts.usage

    def failure_budget(self, stage: str, total: int) -> FailureBudget:
        """Counts failures of a stage with `total` rows; above `engine.max_failed_fraction` it raises TooManyFailed."""
        return FailureBudget(stage, total, self.engine_settings.max_failed_fraction)

    def validate_some_served(self, stage: str, failed: Mapping[str, FailedRequest], served: int) -> None:
        """Raises TooManyFailed when every problem failed, whatever the settings allow. `failed`: by problem."""
        if failed and not served:
            reason = next(iter(failed.values())).reason
            raise TooManyFailed(f"{stage}: there is no completion of any problem: {reason}")

    def log_probs(
        self, stage: str, model: Checkpoint, texts: Sequence[ScorableText], failures: FailureBudget
    ) -> tuple[list[list[float] | FailedRequest], Usage]:
        """The log-prob of each token of each text except its first, or the failure; and the cost. Raises TooManyFailed.

        Log-probs are not stored: each text costs one forward pass.
        """
        advance, found = self.progress.stage(stage, len(texts), "texts"), []
        for text, log_probs in zip(texts, self.engine_for(model).log_probs(model, texts), strict=True):
            found.append(log_probs)
            if isinstance(log_probs, FailedRequest):
                failures.add(log_probs.kind, log_probs.reason)
            advance(1, len(text.token_ids))
        lengths = [len(text.token_ids) for text in texts]
        flops = sum(model.shape.forward_flops(length, 0, 0) for length in lengths)
        return found, Usage(prompt_tokens=sum(lengths), flops=flops)

    def verdicts(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str | None]]
    ) -> tuple[list[list[Verdict]], Usage]:
        """The verdict of each answer of each problem, and the number of timeouts as usage. Slow answers of one call are
        checked in parallel."""
        verdicts = self.verifier.verdicts(problems, answers)
        return verdicts, Usage(unverified=sum(group.count(Verdict.TIMEOUT) for group in verdicts))

    @property
    def gpus(self) -> int:
        """GPUs that a step can use: of the workers, of a cluster's nodes that have just trained, or of this machine."""
        elsewhere = self.workers.gpus if self.workers else getattr(self.trainer, "gpus", 0)
        return elsewhere or len(visible_gpus())

    def release_gpu(self) -> None:
        """Closes the engines, because a GPU cannot hold engine and trainer at once. They restart on next use."""
        if on_cpu() and self.engine_settings.workers.kind != "ray":
            return
        self._end_workers()
        for name in ENGINES:
            if name in self.__dict__:
                self.__dict__[name].close()

    def _end_workers(self) -> None:
        if self.workers:
            self.workers.close()
            self.workers = None

    def close_engines(self) -> None:
        """Ends the run's servers and workers; they start anew on next use."""
        self._end_workers()
        for name in ENGINES:
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def close(self) -> None:
        self.close_engines()
        for part in ("store", "replies", "verifier", "_leases"):
            if part in self.__dict__:
                self.__dict__[part].close()
        self.gpu_slot.give_back()
