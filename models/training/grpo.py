"""Multi-turn GRPO in its own process: samples dialogues, rewards them, trains one of two models (Long⊗Short, arXiv
2505.11827).

Started as `models.training.train` is, but as one process on any number of GPUs.

TRL marks `rollout_func` as experimental; only this module uses it. `env_mask` tells TRL which tokens the trained model
sampled; all others are excluded from loss, KL and length.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import pad
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from conf.errors import ReadableError
from conf.sampling import Sampling
from models.checkpoints.adapters import read_adapter_config
from models.checkpoints.checkpoint import Checkpoint
from models.files import atomic_write
from models.inference.devices import TooFewGpus
from models.inference.dialogue_sampler import SPEAKERS, DialogueSampler, TurnCodec
from models.inference.engine import Completion, Engine, ScorableText
from models.inference.own_servers import OwnServers, serve_all
from models.inference.rollout_executor import FailureBudget, RolloutExecutor, TooManyFailed
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from models.inference.sync_check import SyncCheck, write_sync_check
from models.inference.vllm_server import ServerCannotStart, WeightSyncError
from models.training.launcher import FAILED, STORE_VARIABLE, ExitReason, GrpoJob
from models.training.train import (
    SYNC_CHECK_TOKENS,
    ProgressCallback,
    last_complete_checkpoint,
    lora_config,
    record_exit_reason,
    save,
    uses_gradient_checkpointing,
    validate_device,
)
from models.training.weights import load_model, log_probs_of, save_adapters, save_processing
from reasoning.answers.verifier import Verifier
from reasoning.dialogue import Speaker
from reasoning.records import Problem, Verdict
from reasoning.rewards import DialogueOutcome, Rewards, group_rewards
from reasoning.sampling_plans import FullEstimate
from reasoning.thinking import final_answer, is_closed_once
from reasoning.token_ids import TokenIds
from reasoning.training_health import StepMetrics, collapse, is_best

KINDS = Rewards._fields
SEED_STRIDE = 100_000
"""Offset between the sampling seeds of two jobs; the number of the step is added."""
LOGPROB_BATCH = 8
"""Largest number of dialogues per forward pass; they are padded to the longest of them."""
NOT_SAMPLED = {"seconds", "unverified", "money"}
"""Fields of a step's usage that do not come from sampling."""
RL_SYNC_CHECK_TOKENS = 256
"""Leading tokens of a dialogue, prompt included; enough to reach tokens of the trained model."""


class Collapsed(ReadableError):
    """A step exceeded `rl.collapse_limits`."""


class TooFewProblems(ReadableError):
    """Fewer problems than one step needs."""


class StaleWeights(ReadableError):
    """The written weights are not those in memory."""


GIVEN_UP = (Collapsed, StaleWeights, WeightSyncError, TooManyFailed, TooFewProblems, TooFewGpus, ServerCannotStart)
"""Errors that a repetition would meet again."""


class Rollout(NamedTuple):
    """A dialogue as the trained model saw it, with its result."""

    prompt_ids: TokenIds
    completion_ids: TokenIds
    is_own_token: list[bool]
    """For each of `completion_ids`: whether the trained model sampled it."""
    answer: str | None
    tokens: int
    is_well_formed: bool
    hit_cap: bool
    is_complete: bool = True
    """False for a placeholder of a dialogue that failed; nothing is learnt from it."""


class RolloutEnv(Protocol):
    """Samples rollouts of a problem."""

    def start(self, problem: Problem, sampling: Sampling) -> tuple[SamplingJob, Callable[[], list[Rollout]]]:
        """The job that samples the rollouts, and a function that returns them once the job is done."""
        ...


class DialogueEnv:
    """Two models in dialogue; one of them is trained."""

    def __init__(self, codec: TurnCodec, trained: Speaker):
        self._codec, self._trained = codec, trained

    def start(self, problem: Problem, sampling: Sampling) -> tuple[SamplingJob, Callable[[], list[Rollout]]]:
        prompts = self._codec.prompts(problem)
        plan = DialogueSampler(self._codec, prompts, sampling.samples)
        return plan.job(sampling), lambda: self._rollouts(plan, prompts[self._trained])

    def _rollouts(self, plan: DialogueSampler, prompt: TokenIds) -> list[Rollout]:
        return [
            Rollout(
                prompt,
                state.token_ids,
                state.own_tokens(self._trained),
                state.dialogue.answer,
                state.sampled_tokens,
                state.dialogue.is_well_formed,
                state.dialogue.hit_cap,
            )
            for state in plan.dialogues
        ]


class SingleModelEnv:
    """A single model that answers alone; a control."""

    def __init__(self, model: Checkpoint):
        self._model = model

    def start(self, problem: Problem, sampling: Sampling) -> tuple[SamplingJob, Callable[[], list[Rollout]]]:
        prompt, plan = self._model.prompt_ids(problem), FullEstimate(1, sampling.samples)
        job = SamplingJob(plan, lambda _: prompt, sampling, tuple, len(prompt))
        return job, lambda: [self._rollouts(prompt, completion) for completion in plan.outcomes[0]]

    def _rollouts(self, prompt: TokenIds, completion: object) -> Rollout:
        assert isinstance(completion, Completion)
        text, ids = self._model.decode(completion.token_ids), completion.token_ids
        thinking = self._model.prompt.thinking
        answer = final_answer(text, thinking)
        is_well_formed = completion.finished and is_closed_once(text, thinking) and answer is not None
        return Rollout(prompt, ids, [True] * len(ids), answer, len(ids), is_well_formed, not completion.finished)


class MemorySavingGRPOTrainer(GRPOTrainer):
    """TRL's GRPO trainer with less padding: forward passes group dialogues of similar length, where TRL pads all of a
    step to the longest. `training_seconds` sums the time of training steps; code called from within a step subtracts
    its own time."""

    training_seconds = 0.0

    def training_step(self, *arguments: Any, **others: Any) -> torch.Tensor:
        began = time.monotonic()
        loss = super().training_step(*arguments, **others)
        self.training_seconds += time.monotonic() - began
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As TRL's, with dialogues of similar length in one pass. Padding positions, which no loss reads, are 0. The
        auxiliary load-balancing loss is the mean over dialogues."""
        width, start = input_ids.shape[1], input_ids.shape[1] - logits_to_keep
        order, parts_by_batch = attention_mask.sum(1).argsort(), []
        aux = torch.zeros((), device=input_ids.device)
        for rows in order.split(min(LOGPROB_BATCH, batch_size or LOGPROB_BATCH)):
            used = attention_mask[rows].any(0).nonzero()
            first, last = min(int(used[0]), start - 1), max(int(used[-1]) + 1, start + 1)
            *part, aux_part = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[rows, first:last],
                attention_mask[rows, first:last],
                last - start,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
            )
            aux = aux + len(rows) / len(order) * aux_part if compute_aux_loss else aux
            parts_by_batch.append([pad(one, (0, width - last)) for one in part if one is not None])
        inverse = order.argsort()
        logps, *entropies = (torch.cat(parts)[inverse] for parts in zip(*parts_by_batch, strict=True))
        return logps, entropies[0] if entropies else None, aux if compute_aux_loss else None


class RolloutFunction:
    """TRL's `rollout_func`: samples and rewards the dialogues of each step with the current weights. `metrics` holds
    those of the last step."""

    def __init__(
        self,
        job: GrpoJob,
        start: Checkpoint,
        problems: Mapping[str, Problem],
        engines: Sequence[Engine],
        partner: Checkpoint | None,
        store: RolloutStore,
        verifier: Verifier,
    ):
        """`start`: the model to train, before training; `engines`: one per model, in the order of SPEAKERS; `partner`:
        the frozen model, if there are two."""
        self._job, self._start, self._problems, self._env = job, start, problems, env_for(job, start)
        self._engines, self._partner = engines, partner
        self._store, self._verifier = store, verifier
        self._trained = trained_index(job)
        self._weights, self._sync_check_file = job.work / "weights", job.work / "sync-check-ids.json"
        prompt_start = list(start.prompt_ids(next(iter(problems.values()))))[:SYNC_CHECK_TOKENS]
        self.sync_check_ids: list[int] = (
            json.loads(self._sync_check_file.read_text()) if self._sync_check_file.exists() else prompt_start
        )
        """Tokens of the next weight-sync check: the last dialogue. They are part of a checkpoint's digest, so a resumed
        training needs the same."""
        self._failures = FailureBudget(
            "dialogues", job.rl.max_steps * job.rl.problems_per_step, job.engine.max_failed_fraction
        )
        self._last = (0.0, 0.0)
        """Start of the last step, and `training_seconds` at that time."""
        self.metrics: dict[str, float] = {}
        self.history = self._load_history()

    def __call__(self, problem_ids: list[str], trainer: MemorySavingGRPOTrainer) -> dict[str, Any]:
        """`problem_ids`: each repeated `num_generations` times. Returns TRL's columns for all dialogues."""
        began, passes = time.monotonic(), trainer.training_seconds
        step = trainer.state.global_step
        policy = self._policy(step, trainer)
        models = self._models(policy)
        serve_all(self._engines, models)
        synced = time.monotonic()
        problems = [self._problems[problem_id] for problem_id in dict.fromkeys(problem_ids)]
        groups = self._sample(problems, models, step)
        sampled = time.monotonic()
        dialogues, rewards = [one for group in groups for one in group], self._rewards(problems, groups)
        complete = [pair for pair in zip(dialogues, rewards, strict=True) if pair[0].is_complete]
        first = complete[0][0]
        self.sync_check_ids = list((first.prompt_ids + first.completion_ids)[:RL_SYNC_CHECK_TOKENS])
        atomic_write(self._sync_check_file, json.dumps(self.sync_check_ids))
        self._log_step(step, [one for one, _ in complete], [reward for _, reward in complete], policy)
        self._log_training_cost(dialogues)
        ended = time.monotonic()
        trainer.training_seconds -= ended - began
        self.metrics |= {
            "seconds_sync": synced - began,
            "seconds_sample": sampled - synced,
            "seconds_reward": ended - sampled,
            # Of the previous step, whose training is over by now; unknown in the first step after a start.
            "seconds_previous_step": began - self._last[0] if self._last[0] else 0.0,
            "seconds_previous_training": passes - self._last[1] if self._last[0] else 0.0,
        }
        self._last = (began, passes)
        return {
            "prompt_ids": [list(one.prompt_ids) for one in dialogues],
            "completion_ids": [list(one.completion_ids) for one in dialogues],
            "logprobs": None,  # only needed where sampling and training weights may differ
            "env_mask": [[int(own) for own in one.is_own_token] for one in dialogues],
            **{kind: [getattr(one, kind) for one in rewards] for kind in KINDS},
        }

    def _sample(self, problems: Sequence[Problem], models: Sequence[Checkpoint], step: int) -> list[list[Rollout]]:
        """The rollouts of each problem. Raises TooManyFailed."""
        rl = self._job.rl
        sampling = Sampling(
            samples=rl.num_generations, temperature=rl.temperature, top_p=1.0, max_tokens=self._job.max_tokens
        )
        started = [self._env.start(problem, sampling) for problem in problems]
        schedulers = [EngineScheduler(engine, model) for engine, model in zip(self._engines, models, strict=True)]
        # One seed per step: otherwise the frozen partner would repeat its turns when a problem comes again.
        seed = self._job.seed * SEED_STRIDE + step
        rollouts = RolloutExecutor(self._store, schedulers, Purpose.GRPO, seed, failures=self._failures)
        rollouts.run_to_completion(job for job, _ in started)
        self.metrics = rollouts.usage.model_dump(exclude=NOT_SAMPLED)
        failed = [job.failure for job, _ in started if job.failure]
        if len(failed) == len(started):
            raise TooManyFailed(f"step {step}: all dialogues failed: {failed[0].reason}")
        self.metrics |= {f"{FAILED}{kind}": count for kind, count in Counter(one.kind for one in failed).items()}
        return [
            self._placeholders(problem) if job.failure else get_rollouts()
            for problem, (job, get_rollouts) in zip(problems, started, strict=True)
        ]

    def _placeholders(self, problem: Problem) -> list[Rollout]:
        """Placeholders for the dialogues of a problem that failed: identical and without own tokens, so that they have
        neither advantage nor loss."""
        prompt, end = self._start.prompt_ids(problem), TokenIds((self._start.end_id,))
        return [Rollout(prompt, end, [False], None, 0, False, False, is_complete=False)] * self._job.rl.num_generations

    def _rewards(self, problems: Sequence[Problem], groups: Sequence[Sequence[Rollout]]) -> list[Rewards]:
        """Rewards of all dialogues, in order."""
        verdicts_by_group = self._verifier.verdicts(problems, [[one.answer for one in group] for group in groups])
        self.metrics["unverified"] = sum(verdicts.count(Verdict.TIMEOUT) for verdicts in verdicts_by_group)
        return [
            rewards
            for group, verdicts in zip(groups, verdicts_by_group, strict=True)
            for rewards in group_rewards(
                [
                    DialogueOutcome(one.tokens, verdict is Verdict.RIGHT, one.is_well_formed)
                    for one, verdict in zip(group, verdicts, strict=True)
                ]
            )
        ]

    def _log_step(
        self, step: int, dialogues: Sequence[Rollout], rewards: Sequence[Rewards], policy: Checkpoint
    ) -> None:
        """Records the step's figures, and its weights if they are the best so far. Raises Collapsed."""
        rl, count = self._job.rl, len(dialogues)
        means = {kind: sum(getattr(one, kind) for one in rewards) / count for kind in KINDS}
        quality_reward = rl.correctness_weight * means["correctness"] + rl.format_weight * means["format"]
        tokens = sum(one.tokens for one in dialogues) / count
        self.history = [one for one in self.history if one.step < step]
        self.history.append(StepMetrics(step=step, tokens=tokens, quality_reward=quality_reward))
        atomic_write(self._job.work / "training_health.json", json.dumps([one.model_dump() for one in self.history]))
        reason = collapse(self.history, rl.collapse_limits)
        if not reason and is_best(self.history):
            atomic_write(self._job.work / "best", str(policy.path))
        self._remove_old_weights(policy.path)
        self.metrics |= {
            "dialogue_tokens": tokens,
            "cap_hit": sum(one.hit_cap for one in dialogues) / count,
            **means,
        }
        if reason:
            raise Collapsed(
                f"the training of the {self._job.trains or 'single'} model collapsed in step {step}: {reason}. Its "
                f"best weights are in {(self._job.work / 'best').read_text()}; "
                f"lower rl.learning_rate, raise rl.beta, or "
                f"widen rl.collapse_limits"
            )

    def _log_training_cost(self, dialogues: Sequence[Rollout]) -> None:
        """Records the training FLOPs of a step, those of the reference model included."""
        self.metrics["training_flops"] = self._start.shape.training_flops(
            [len(one.prompt_ids) + len(one.completion_ids) for one in dialogues],
            are_weights_frozen=bool(self._job.lora),
            gradient_checkpointing=uses_gradient_checkpointing(),
            with_reference=self._job.rl.beta > 0,
        )

    def _load_history(self) -> list[StepMetrics]:
        path = self._job.work / "training_health.json"
        return [StepMetrics.model_validate(one) for one in json.loads(path.read_text())] if path.exists() else []

    def _models(self, policy: Checkpoint) -> list[Checkpoint]:
        if self._partner is None:
            return [policy]
        return [policy, self._partner] if self._trained == 0 else [self._partner, policy]

    def _policy(self, step: int, trainer: MemorySavingGRPOTrainer) -> Checkpoint:
        """The current weights as a checkpoint on disk."""
        if step == 0:
            return self._start
        folder = self._weights / str(step)
        model = trainer.accelerator.unwrap_model(trainer.model)
        write_weights(model, self._start, folder, self.sync_check_ids)
        if isinstance(model, PeftModel):
            return self._start.with_adapter(folder)
        return Checkpoint.open(folder, self._job.engine.numerics, self._job.prompt)

    def _remove_old_weights(self, current: Path) -> None:
        best = Path((self._job.work / "best").read_text())
        for folder in self._weights.glob("*"):
            if folder not in (best, current):
                shutil.rmtree(folder)


def write_weights(model: Any, start: Checkpoint, folder: Path, token_ids: list[int]) -> None:
    """Writes what `start` has become, in float32: the adapters of the model, joined with those of `start`, or all its
    weights if it has none. With the log-probs of `token_ids` as sync check; atomic."""
    hidden = folder.with_name(f".{folder.name}")
    for old in (hidden, folder):
        shutil.rmtree(old, ignore_errors=True)
    if isinstance(model, PeftModel):
        plain, config = model.get_base_model(), model.peft_config["default"]
        adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights: Mapping[str, torch.Tensor] = save_adapters(adapters, config, start.adapter, str(start.folder), hidden)  # type: ignore[arg-type]
    else:
        plain, weights = model, model.state_dict()
        plain.save_pretrained(hidden)
        save_processing(start.folder, start.tokenizer, hidden)
    text = ScorableText(TokenIds(token_ids))
    write_sync_check(hidden, SyncCheck.of(text, log_probs_of(plain, token_ids)))
    hidden.rename(folder)
    check_weights(weights, set(getattr(plain, "all_tied_weights_keys", None) or ()), folder)


def check_weights(weights: Mapping[str, torch.Tensor], tied: Set[str], folder: Path) -> None:
    """Raises StaleWeights unless the files hold all `weights` bit for bit; `tied` ones may be stored under another
    name."""
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        try:
            stored |= load_file(path)
        except SafetensorError as error:
            raise StaleWeights(f"{path} cannot be read: {error}") from None
    for name, weight in weights.items():
        if name in stored:
            if not torch.equal(stored[name].to(weight.device), weight):
                raise StaleWeights(f"{folder}: {name} differs from the trained weight; nothing was sampled with it")
        elif name not in tied:
            raise StaleWeights(f"{folder}: {name} is missing; nothing was sampled with it")


def grpo_config(job: GrpoJob) -> GRPOConfig:
    """TRL's settings: one optimizer step per set of dialogues, all sampled with the weights that it updates."""
    on_cpu, micro_batches = not torch.cuda.is_available(), job.global_batch_size // job.per_device_train_batch_size
    return GRPOConfig(
        output_dir=str(job.work),
        seed=job.seed,
        data_seed=job.seed,
        max_steps=job.rl.max_steps,
        per_device_train_batch_size=job.per_device_train_batch_size,
        gradient_accumulation_steps=micro_batches,
        steps_per_generation=micro_batches,
        num_generations=job.rl.num_generations,
        shuffle_dataset=False,
        num_iterations=1,
        loss_type="grpo",
        scale_rewards="group",
        beta=job.rl.beta,
        temperature=job.rl.temperature,
        reward_weights=[job.rl.correctness_weight, job.rl.format_weight, job.rl.length_weight],
        learning_rate=job.learning_rate,
        warmup_steps=job.warmup_ratio,
        lr_scheduler_type="cosine",
        bf16=job.bf16 and not on_cpu,
        use_cpu=on_cpu,
        gradient_checkpointing=uses_gradient_checkpointing(),
        report_to="none",
        disable_tqdm=True,
        logging_steps=job.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=job.save_steps,
        save_total_limit=1,
    )


def reward_functions() -> list[Callable[..., list[float]]]:
    """Reward functions that return the columns of `RolloutFunction`, since TRL weighs and logs each reward
    separately."""

    def reading(kind: str) -> Callable[..., list[float]]:
        def read(**columns: Any) -> list[float]:
            return columns[kind]

        read.__name__ = kind
        return read

    return [reading(kind) for kind in KINDS]


def main(job: GrpoJob) -> None:
    """Runs the job with vLLM servers of its own."""
    validate_device()
    with ExitStack() as stack:
        engines = [
            OwnServers(
                job.engine,
                job.work / f"vllm-{index}.log",
                lora_rank=lora_rank(job) if index == trained_index(job) else 0,
            )
            for index in range(2 if job.partner else 1)
        ]
        store, verifier = RolloutStore(os.environ[STORE_VARIABLE]), Verifier()
        for part in (*engines, store, verifier):
            stack.callback(part.close)
        train_grpo(job, engines, store, verifier)


def train_grpo(job: GrpoJob, engines: Sequence[Engine], store: RolloutStore, verifier: Verifier) -> None:
    """Trains `job.model` and writes `job.output`; resumes from the last checkpoint."""
    torch.manual_seed(job.seed)
    rows = [Problem.model_validate(row) for row in pq.read_table(job.rows).to_pylist()]
    start = opened(job, job.model, job.adapter)
    partner = opened(job, job.partner, job.partner_adapter) if job.partner else None
    problems = {row.id: row for row in rows}
    order = problem_order(list(problems), job)
    rollout_function = RolloutFunction(job, start, problems, engines, partner, store, verifier)
    trainer = MemorySavingGRPOTrainer(
        model=load_model(job.model, job.adapter),
        args=grpo_config(job),
        reward_funcs=reward_functions(),  # type: ignore[arg-type]
        train_dataset=Dataset.from_dict({"prompt": order}),
        processing_class=start.tokenizer,
        rollout_func=rollout_function,  # type: ignore[arg-type]
        peft_config=lora_config(job),
    )
    trainer.add_callback(ProgressCallback(job.progress, lambda: rollout_function.metrics))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(job.work))
    save(job, trainer, start.tokenizer, ScorableText(TokenIds(rollout_function.sync_check_ids)))


def opened(job: GrpoJob, folder: Path, adapter: Path | None) -> Checkpoint:
    weights = Checkpoint.open(folder, job.engine.numerics, job.prompt)
    return weights.with_adapter(adapter) if adapter else weights


def problem_order(names: Sequence[str], job: GrpoJob) -> list[str]:
    """Problem ids of all steps, as one epoch, since a sampler that shuffles each epoch cannot be resumed in a
    later one. No problem occurs twice in a step. Raises TooFewProblems."""
    if len(names) < job.rl.problems_per_step:
        raise TooFewProblems(
            f"{len(names)} problems are left to train on, but each step needs rl.problems_per_step "
            f"({job.rl.problems_per_step}); lower "
            f"that, or provide more problems"
        )
    rng, order = random.Random(f"reinforce/{job.seed}"), list[str]()
    while len(order) < job.rl.max_steps * job.rl.problems_per_step:
        shuffled = rng.sample(list(names), len(names))
        order += shuffled[: len(names) // job.rl.problems_per_step * job.rl.problems_per_step]
    return order[: job.rl.max_steps * job.rl.problems_per_step]


def lora_rank(job: GrpoJob) -> int:
    """Of the adapters that are served in training: its own, joined with those that it starts from; 0 if it has none."""
    before = read_adapter_config(job.adapter).r if job.adapter else 0
    return before + job.lora.r if job.lora else 0


def trained_index(job: GrpoJob) -> int:
    """Place of the trained model among the engines."""
    return SPEAKERS.index(Speaker(job.trains)) if job.trains else 0


def env_for(job: GrpoJob, start: Checkpoint) -> RolloutEnv:
    if job.trains is None or job.protocol is None:
        return SingleModelEnv(start)
    return DialogueEnv(TurnCodec(start, job.protocol), Speaker(job.trains))


def run(job: GrpoJob) -> None:
    """Runs the job; writes the reason to the exit file when it ends for a known one."""
    try:
        main(job)
    except GIVEN_UP as error:
        job.exit_file.write_text(f"{ExitReason.GIVEN_UP}\n{error}")
        raise


if __name__ == "__main__":
    record_exit_reason(GrpoJob.model_validate_json(Path(sys.argv[1]).read_text()), run)
