"""What a run samples, checks and trains with: engines, stores, checkpoints, the answer check, auxiliary models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from conf.engine import Engine as EngineSettings
from conf.llm import Llm
from conf.prompts import Prompt
from models.checkpoints.checkpoint import Checkpoint, found_checkpoint
from models.inference.engine import Completion, Engine, Refused, Request
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_engine import FailureBudget, RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, Job
from models.inference.vllm_server import on_cpu
from models.llm.client import LlmClient
from models.llm.reply_store import ReplyStore
from reasoning.answers.verifier import Verifier
from reasoning.records import Problem, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.progress import Progress

ENGINES = ("engine", "partner_engine")
"""Attributes of the engines that a run owns."""
Train = Callable[[Any, Path, Callable[[int, int], None]], list[dict[str, Any]]]


class SampledCompletions(NamedTuple):
    """The completions of each request, in order, or why there are none, and what drawing the missing ones cost."""

    completions: list[tuple[Completion, ...] | Refused]
    usage: Usage


class Resources:
    """Each part starts when it is first used; `close` ends every process that was started."""

    def __init__(
        self,
        engine: EngineSettings,
        rollouts_url: str,
        prompt: Prompt,
        artifacts: ArtifactStore,
        logs: Path,
        progress: Progress,
        warn: Callable[[str], None],
        make_engine: Callable[[EngineSettings, Path], Engine],
        trainer: Train,
    ):
        self.engine_settings, self.rollouts_url = engine, rollouts_url
        self.prompt = prompt
        """How problems are shown to every model of the run; part of the key of each step that reads a model."""
        self.trainer = trainer
        self._artifacts, self._logs, self._progress, self._warn = artifacts, logs, progress, warn
        self._make_engine = make_engine
        self._llm_clients: dict[str, LlmClient] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._base: set[str] = set()
        """Fingerprints of models that this run did not make."""

    @cached_property
    def engine(self) -> Engine:
        return self._new_engine("vllm.log")

    @cached_property
    def partner_engine(self) -> Engine:
        """A second one, for the other model of a couple."""
        return self._new_engine("vllm-partner.log")

    def _new_engine(self, name: str) -> Engine:
        log = self._logs / name
        self._progress.note(f"engine: starts when needed, log in {log}")
        return self._make_engine(self.engine_settings, log)

    @cached_property
    def store(self) -> RolloutStore:
        return RolloutStore(self.rollouts_url)

    @cached_property
    def replies(self) -> ReplyStore:
        """Of auxiliary models, beside the rollouts."""
        return ReplyStore(self.rollouts_url)

    def llm_client(self, llm: Llm) -> LlmClient:
        """One client for all of the run's questions to it, so that no reply is paid for twice."""
        name = llm.model_dump_json()
        if name not in self._llm_clients:
            self._llm_clients[name] = LlmClient(llm, self.replies)
        return self._llm_clients[name]

    @cached_property
    def verifier(self) -> Verifier:
        return Verifier()

    def model(self, name: str) -> ArtifactRef:
        """The base model: a checkpoint folder, `owner/name` on the hub, or `tiny`.

        Raises CheckpointError when it is not whole, cannot be used, or is not to be had.
        """
        checkpoint = self._open(found_checkpoint(name))
        checkpoint.check()
        if unread := checkpoint.prompts.unread:
            self._warn(f"the chat template of {name} does not read {', '.join(unread)} of prompt.template_arguments")
        self._checkpoints[checkpoint.fingerprint] = checkpoint
        self._base.add(checkpoint.fingerprint)
        return ArtifactRef(kind="base-model", uri=str(checkpoint.folder), digest=checkpoint.fingerprint, rows=1)

    def _open(self, folder: Path) -> Checkpoint:
        return Checkpoint.open(folder, self.engine_settings.dtype, self.prompt)

    def checkpoint(self, ref: ArtifactRef) -> Checkpoint:
        if ref.digest not in self._checkpoints:
            self._checkpoints[ref.digest] = self._open(self._artifacts.local_path(ref))
        return self._checkpoints[ref.digest]

    def engine_for(self, model: Checkpoint) -> Engine:
        """The servers elsewhere, where there are any and they serve `model`: the base. The run's own otherwise."""
        return self.remote_servers if self._is_remote(model) else self.engine

    def partner_for(self, model: Checkpoint) -> Engine:
        """The same for a model that is needed while `engine` serves another."""
        return self.remote_servers if self._is_remote(model) else self.partner_engine

    def _is_remote(self, model: Checkpoint) -> bool:
        return bool(self.engine_settings.endpoints) and model.fingerprint in self._base

    @cached_property
    def remote_servers(self) -> RemoteServers:
        return RemoteServers(self.engine_settings)

    def sample(
        self, stage: str, model: Checkpoint, requests: Sequence[Request], purpose: Purpose, seed: int
    ) -> SampledCompletions:
        """All completions of each request, through the rollout store. Raises TooManyFailed."""
        rollouts = self._rollouts(stage, len(requests), model, purpose, seed)
        return SampledCompletions(rollouts.sample(requests), rollouts.usage)

    def run_jobs(
        self,
        stage: str,
        model: Checkpoint,
        jobs: Sequence[Job],
        purpose: Purpose,
        seed: int,
        account: Callable[[Usage], None],
    ) -> Iterator[Job]:
        """Each job as its plan is closed, or refused; `account` hears at the end what they cost. Raises
        TooManyFailed."""
        rollouts = self._rollouts(stage, len(jobs), model, purpose, seed)
        yield from rollouts.run(jobs)
        account(rollouts.usage)

    def run_pair(
        self, stage: str, models: tuple[Checkpoint, Checkpoint], jobs: Sequence[Job], purpose: Purpose, seed: int
    ) -> Usage:
        """Closes the plans of all jobs, which need both models at the same time, but those that are refused. Raises
        TooManyFailed."""
        advance = self._progress.stage(stage, len(jobs), "problems")
        schedulers = [
            EngineScheduler(self.engine_for(models[0]), models[0]),
            EngineScheduler(self.partner_for(models[1]), models[1]),
        ]
        rollouts = RolloutExecutor(self.store, schedulers, purpose, seed, advance, self.failures(stage, len(jobs)))
        rollouts.run_jobs(jobs)
        return rollouts.usage

    def _rollouts(self, stage: str, count: int, model: Checkpoint, purpose: Purpose, seed: int) -> RolloutExecutor:
        advance = self._progress.stage(stage, count, "prompts")
        schedulers = [EngineScheduler(self.engine_for(model), model)]
        return RolloutExecutor(self.store, schedulers, purpose, seed, advance, self.failures(stage, count))

    def failures(self, stage: str, total: int) -> FailureBudget:
        """Of `total` rows of a stage, as many may fail as the run's settings allow."""
        return FailureBudget(stage, total, self.engine_settings.max_failed_fraction)

    def log_probs(
        self, stage: str, model: Checkpoint, texts: Sequence[tuple[int, ...]]
    ) -> tuple[list[list[float] | Refused], Usage]:
        """The model's log-prob of each token but the first of `texts`, or why there are none. Not kept: one forward
        pass each. Raises TooManyFailed."""
        advance, failures = self._progress.stage(stage, len(texts), "texts"), self.failures(stage, len(texts))
        found = []
        for text, log_probs in zip(texts, self.engine_for(model).log_probs(model, texts), strict=True):
            found.append(log_probs)
            if isinstance(log_probs, Refused):
                failures.add(log_probs.kind, log_probs.reason)
            advance(1, len(text))
        flops = sum(model.shape.forward_flops(len(text), 0, 0) for text in texts)
        return found, Usage(prompt_tokens=sum(map(len, texts)), flops=flops)

    def verdicts(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str | None]]
    ) -> tuple[list[list[Verdict]], Usage]:
        """The verdicts of each problem's answers; checked in one call, so hard ones are checked side by side."""
        verdicts = self.verifier.verdicts(problems, answers)
        return verdicts, Usage(unverified=sum(group.count(Verdict.TIMEOUT) for group in verdicts))

    def release_gpu(self) -> None:
        """A GPU cannot hold the engine and the trainer at once; the engine starts again when it is needed."""
        for name in ENGINES:
            if name in self.__dict__ and not on_cpu():
                self.__dict__[name].close()

    def close(self) -> None:
        for part in ("store", "replies", "verifier", *ENGINES):
            if part in self.__dict__:
                self.__dict__[part].close()
