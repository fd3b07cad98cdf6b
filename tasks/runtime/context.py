"""Where a run's tasks work: its folder, stores, engine, answer check and trainer, each opened on first need.

Knows: how the parts are put together. Must not know: any pipeline. It is the one task argument that is no content.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from conf.base import Settings
from conf.engine import Engine as EngineSettings
from conf.engine import Storage
from conf.llm import Llm
from conf.prompts import Prompt
from models.checkpoints.checkpoint import Checkpoint, found_checkpoint
from models.files import atomic_write
from models.inference.engine import Completion, Engine, Refused, Request
from models.inference.remote_servers import RemoteServers
from models.inference.rollout_engine import FailureBudget, RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, Job
from models.inference.vllm_server import VllmServer, on_cpu
from models.llm.client import LlmClient
from models.llm.reply_store import ReplyStore
from models.training.launcher import train
from reasoning.answers.verifier import Verifier
from reasoning.records import CostBounds, InvalidRow, Problem, Record, SkippedRow, StageCount, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.progress import Progress

R = TypeVar("R", bound=Record)
ENGINES = ("engine", "partner")
"""Those that a run owns, by the names of their attributes."""
Train = Callable[[Any, Path, Callable[[int, int], None]], list[dict[str, Any]]]


class SampledCompletions(NamedTuple):
    """The completions of each request, in order, or why there are none, and what drawing the missing ones cost."""

    completions: list[tuple[Completion, ...] | Refused]
    usage: Usage


class LedgerEntry(NamedTuple):
    """A step that was taken, or found in the cache; `artifact.count` says what it took and cost when it was made."""

    step: str
    version: str
    """Of the code that made it."""
    artifact: ArtifactRef
    cached: bool
    inputs: frozenset[int]
    """Positions in the ledger of the steps whose results it read."""


def upstream_steps(artifact: ArtifactRef, ledger: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """The steps whose results went into `artifact`, each once, the last one first."""
    wanted = {artifact.entry}
    for position in reversed(range(len(ledger))):
        if position in wanted:
            wanted |= ledger[position].inputs
    return [ledger[position] for position in reversed(range(len(ledger))) if position in wanted]


class RunContext:
    """Use as a context manager: leaving it ends every process it started."""

    def __init__(
        self,
        name: str,
        storage: Storage,
        engine: EngineSettings,
        *,
        prompt: Prompt | None = None,
        make_engine: Callable[[EngineSettings, Path], Engine] = VllmServer,
        trainer: Train = train,
        progress: Progress | None = None,
    ):
        self.artifacts = ArtifactStore(storage.root)
        self.is_local = self.artifacts.is_local
        self.root = str(Path(storage.root).resolve()) if self.is_local else storage.root
        self.local_root = Path(self.root) if self.is_local else Path("runs").resolve()
        self.folder = _new_folder(self.local_root, name)
        self.progress = progress or Progress()
        self.ledger: list[LedgerEntry] = []
        self.warnings: list[str] = []
        """What a reader of the report must know first."""
        self.step_key = ""
        """Cache key of the step under way; names what a repeated step must find again."""
        self.trainer = trainer
        self.rollouts_url = storage.rollout_store or f"sqlite:///{self.local_root / 'rollouts.sqlite'}"
        self.engine_settings = engine
        self.prompt = prompt or Prompt()
        """How problems are shown to every model of the run; in the key of each step that reads a model."""
        self._make_engine = make_engine
        self._auxiliary: dict[str, LlmClient] = {}
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
        log = self.folder / name
        self.progress.note(f"engine: starts when needed, log in {log}")
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
        if name not in self._auxiliary:
            self._auxiliary[name] = LlmClient(llm, self.replies)
        return self._auxiliary[name]

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
            self.warn(f"the chat template of {name} does not read {', '.join(unread)} of prompt.template_arguments")
        self._checkpoints[checkpoint.fingerprint] = checkpoint
        self._base.add(checkpoint.fingerprint)
        return ArtifactRef(kind="base-model", uri=str(checkpoint.folder), digest=checkpoint.fingerprint, rows=1)

    def _open(self, folder: Path) -> Checkpoint:
        return Checkpoint.open(folder, self.engine_settings.dtype, self.prompt)

    def checkpoint(self, ref: ArtifactRef) -> Checkpoint:
        if ref.digest not in self._checkpoints:
            self._checkpoints[ref.digest] = self._open(self.artifacts.local_path(ref))
        return self._checkpoints[ref.digest]

    def rows(self, ref: ArtifactRef, kind: type[R]) -> list[R]:
        return self.artifacts.rows(ref, kind)

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
        advance = self.progress.stage(stage, len(jobs), "problems")
        schedulers = [
            EngineScheduler(self.engine_for(models[0]), models[0]),
            EngineScheduler(self.partner_for(models[1]), models[1]),
        ]
        rollouts = RolloutExecutor(self.store, schedulers, purpose, seed, advance, self.failures(stage, len(jobs)))
        rollouts.run_jobs(jobs)
        return rollouts.usage

    def _rollouts(self, stage: str, count: int, model: Checkpoint, purpose: Purpose, seed: int) -> RolloutExecutor:
        advance = self.progress.stage(stage, count, "prompts")
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
        advance, failures = self.progress.stage(stage, len(texts), "texts"), self.failures(stage, len(texts))
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

    def publish(
        self,
        kind: str,
        rows: Sequence[Record],
        *,
        rows_in: int,
        dropped: dict[str, int] | None = None,
        usage: Usage | None = None,
        started: float,
        counts: dict[str, int] | None = None,
        bill: CostBounds | None = None,
        payee: str = "",
        aside: Sequence[SkippedRow] = (),
    ) -> ArtifactRef:
        """`rows` as an artifact with its ledger line. `started`: time.monotonic() at the stage's start; `aside`: rows
        that are dropped beside the `dropped` ones, and listed."""
        self.report_skipped(aside)
        all_dropped = Counter(dropped or {}) + Counter(row.reason for row in aside)
        count = stage_count(rows_in, len(rows), dict(all_dropped), usage, started)
        count = count.model_copy(update={"counts": counts or {}, "cost_bounds": bill, "billed_to": payee})
        return self.artifacts.publish_rows(kind, rows, count)

    def report_skipped(self, rows: Sequence[SkippedRow | InvalidRow], what: str = "rows") -> None:
        """Into `set-aside/<step>.jsonl`, where a person finds them."""
        if rows:
            path = self.local_root / "set-aside" / f"{self.step_key}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
            self.progress.note(f"{len(rows)} {what} set aside in {path}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.note(f"warning: {text}")

    def scratch(self, name: str) -> Path:
        """A folder for unfinished work that a repeated task finds again."""
        folder = self.local_root / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_settings(self, settings: Settings) -> None:
        (self.folder / "config.json").write_text(settings.model_dump_json(indent=2))

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def save_report(self, report: dict[str, Any]) -> Path:
        """`report.json` in the run's folder, and `latest` pointing to it."""
        path = self.report
        atomic_write(path, json.dumps(report, indent=2, allow_nan=False))
        link = self.local_root / f".latest-{self.folder.name}"
        link.symlink_to(self.folder.name)
        link.rename(self.local_root / "latest")
        return path

    def release_gpu(self) -> None:
        """A GPU cannot hold the engine and the trainer at once; the engine starts again when it is needed."""
        for name in ENGINES:
            if name in self.__dict__ and not on_cpu():
                self.__dict__[name].close()

    def close(self) -> None:
        for part in ("store", "replies", "verifier", *ENGINES):
            if part in self.__dict__:
                self.__dict__[part].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stage_count(
    rows_in: int, rows_out: int, dropped: dict[str, int] | None, usage: Usage | None, started: float
) -> StageCount:
    """A stage's account. `started`: time.monotonic() at its start."""
    cost = (usage or Usage()).model_dump() | {"seconds": time.monotonic() - started}
    return StageCount.model_validate({"rows_in": rows_in, "rows_out": rows_out, "dropped": dropped or {}, **cost})


def _new_folder(root: Path, name: str) -> Path:
    """`<name>-<UTC time>`, numbered when two runs start in one second."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = root / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RuntimeError(f"too many runs named {name} in {root}")
