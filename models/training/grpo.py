"""The process that reinforces one of two models: dialogues drawn, rewarded, learnt from (Long⊗Short, section C.5).

Knows: TRL's GRPO, how weights reach the server that samples. Must not know: pipelines, rounds, sources.
Started by `accelerate launch`, as `models.training.train` is.

TRL marks `rollout_func` as experimental; it is met here and nowhere else. What it is given per token is whether the
trained model drew it: `env_mask` keeps all others out of loss, divergence and length.
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
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from conf.errors import ReadableError
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.files import atomic_write
from models.inference.dialogue_sampler import SPEAKERS, DialogueSampler, TurnCodec
from models.inference.engine import Completion, Engine
from models.inference.rollout_engine import FailureBudget, RolloutExecutor, TooManyFailed
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, Job
from models.inference.vllm_server import SYNC_CHECK_FILE, VllmServer, WeightSyncError, serve_all
from models.training.launcher import FAILED, STORE_VARIABLE, ExitReason, RlJob
from models.training.train import (
    SYNC_CHECK_TOKENS,
    ProgressCallback,
    adapters,
    last_whole_checkpoint,
    log_probs_of,
    recomputes,
    record_exit_reason,
    save,
)
from reasoning.answers.verifier import Verifier
from reasoning.dialogue import Speaker
from reasoning.records import Problem, Verdict
from reasoning.rewards import DialogueOutcome as Rewarded
from reasoning.rewards import Rewards, group_rewards
from reasoning.sampling_plans import FullEstimate
from reasoning.thinking import final_answer, is_closed_once
from reasoning.training_health import StepFigures, collapse, is_best

KINDS = Rewards._fields
STEPS_APART = 100_000
"""Between the seeds of two rounds' samples."""
LOGPROB_BATCH = 8
"""Dialogues in one pass of the trained model, which are padded to the longest of them."""
NOT_SAMPLED = {"seconds", "unverified", "money"}
"""What of a step's usage comes from elsewhere than its sampling."""
RL_SYNC_CHECK_TOKENS = 256
"""Of a dialogue, with its prompt: enough to reach what the model itself said."""


class Collapsed(ReadableError):
    """Dialogues have left the bounds of `rl.collapse_limits`."""


class TooFewProblems(ReadableError):
    """Not even one step's worth."""


class StaleWeights(ReadableError):
    """Weights on their way to the server are not those that were trained."""


class Rollout(NamedTuple):
    """What the trained model learns from: a dialogue as it was shown to it, and what came of it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    is_own_token: list[bool]
    """Which of `completion_ids` it drew."""
    answer: str | None
    tokens: int
    is_well_formed: bool
    hit_cap: bool
    is_complete: bool = True
    """False where an engine failed: it then stands for a dialogue of which nothing is learnt."""


class RolloutEnv(Protocol):
    """Who works on a problem, and how."""

    def start(self, problem: Problem, sampling: Sampling) -> tuple[Job, Callable[[], list[Rollout]]]:
        """A job, and what to ask once it is done."""
        ...


class DialogueEnv:
    """Two models in dialogue; one of them is trained."""

    def __init__(self, codec: TurnCodec, trained: Speaker):
        self._codec, self._trained = codec, trained

    def start(self, problem: Problem, sampling: Sampling) -> tuple[Job, Callable[[], list[Rollout]]]:
        prompts = self._codec.prompts(problem)
        plan = DialogueSampler(self._codec, prompts, sampling.samples)
        return plan.job(sampling), lambda: self._rollouts(plan, prompts[self._trained])

    def _rollouts(self, plan: DialogueSampler, prompt: tuple[int, ...]) -> list[Rollout]:
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
    """One model, as it answers by itself: a control."""

    def __init__(self, model: Checkpoint):
        self._model = model

    def start(self, problem: Problem, sampling: Sampling) -> tuple[Job, Callable[[], list[Rollout]]]:
        prompt, plan = self._model.prompt_ids(problem), FullEstimate(1, sampling.samples)
        job = Job(plan, lambda _: prompt, sampling, tuple, len(prompt) + sampling.max_tokens)
        return job, lambda: [self._rollouts(prompt, completion) for completion in plan.outcomes[0]]

    def _rollouts(self, prompt: tuple[int, ...], completion: object) -> Rollout:
        assert isinstance(completion, Completion)
        text, ids = self._model.decode(completion.token_ids), completion.token_ids
        thinking = self._model.prompt.thinking
        answer = final_answer(text, thinking)
        is_well_formed = completion.finished and is_closed_once(text, thinking) and answer is not None
        return Rollout(prompt, ids, [True] * len(ids), answer, len(ids), is_well_formed, not completion.finished)


class MemorySavingGRPOTrainer(GRPOTrainer):
    """TRL's, without its padding: there every dialogue of a step is as wide as the longest of all. Knows how long its
    passes took; who is called from within one takes his own time off."""

    seconds_in_passes = 0.0

    def training_step(self, *arguments: Any, **others: Any) -> torch.Tensor:
        began = time.monotonic()
        loss = super().training_step(*arguments, **others)
        self.seconds_in_passes += time.monotonic() - began
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
        """TRL's, on dialogues of like length together; what it would give for padding, which no loss reads, is 0. The
        loss that balances experts is the mean over dialogues."""
        width, start = input_ids.shape[1], input_ids.shape[1] - logits_to_keep
        order, found = attention_mask.sum(1).argsort(), []
        aux = torch.zeros((), device=input_ids.device)
        for rows in order.split(min(LOGPROB_BATCH, batch_size or LOGPROB_BATCH)):
            used = attention_mask[rows].any(0).nonzero()
            first, last = min(int(used[0]), start - 1), max(int(used[-1]) + 1, start + 1)
            *part, balance = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[rows, first:last],
                attention_mask[rows, first:last],
                last - start,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
            )
            aux = aux + len(rows) / len(order) * balance if compute_aux_loss else aux
            found.append([pad(one, (0, width - last)) for one in part if one is not None])
        back = order.argsort()
        logps, *entropies = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
        return logps, entropies[0] if entropies else None, aux if compute_aux_loss else None


class RolloutFunction:
    """Draws and rewards the dialogues of each step with the weights as they are then. `figures` are the last step's."""

    def __init__(
        self,
        job: RlJob,
        start: Checkpoint,
        problems: Mapping[str, Problem],
        engines: Sequence[Engine],
        partner: Checkpoint | None,
        store: RolloutStore,
        verifier: Verifier,
    ):
        """`start`: what is trained, as it was; `engines`: as many as take part, the trained model's at its place."""
        self._job, self._start, self._problems, self._env = job, start, problems, env_for(job, start)
        self._engines, self._partner = engines, partner
        self._store, self._verifier = store, verifier
        self._trained = SPEAKERS.index(Speaker(job.trains)) if job.trains else 0
        self._weights, self._proof_file = job.work / "weights", job.work / "proof-text.json"
        first = list(start.prompt_ids(next(iter(problems.values()))))[:SYNC_CHECK_TOKENS]
        self.sync_check_ids: list[int] = (
            json.loads(self._proof_file.read_text()) if self._proof_file.exists() else first
        )
        """What a server is asked about to show which weights it serves: the last dialogue. It is in a checkpoint's
        digest, so a resumed training must have the same."""
        self._failures = FailureBudget(
            "dialogues", job.rl.max_steps * job.rl.problems_per_step, job.engine.max_failed_fraction
        )
        self._last = (0.0, 0.0)
        """When the last step began, and how long passes had taken by then."""
        self.figures: dict[str, float] = {}
        self.history = self._load_history()

    def __call__(self, names: list[str], trainer: MemorySavingGRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: `names` are problems' ids, each as often as a group has dialogues."""
        began, passes = time.monotonic(), trainer.seconds_in_passes
        step = trainer.state.global_step
        policy = self._policy(step, trainer)
        models = self._models(policy)
        serve_all(self._engines, models)
        synced = time.monotonic()
        asked = [self._problems[name] for name in dict.fromkeys(names)]
        groups = self._sample(asked, models, step)
        drawn = time.monotonic()
        told, rewards = [one for group in groups for one in group], self._rewards(asked, groups)
        held = [(one, its) for one, its in zip(told, rewards, strict=True) if one.is_complete]
        first = held[0][0]
        self.sync_check_ids = list((first.prompt_ids + first.completion_ids)[:RL_SYNC_CHECK_TOKENS])
        atomic_write(self._proof_file, json.dumps(self.sync_check_ids))
        self._log_step(step, [one for one, _ in held], [its for _, its in held], policy)
        self._log_training_cost(told)
        ended = time.monotonic()
        trainer.seconds_in_passes -= ended - began
        self.figures |= {
            "seconds_sync": synced - began,
            "seconds_sample": drawn - synced,
            "seconds_reward": ended - drawn,
            # Of the step before this one, whose training is over by now; a resumed training has none.
            "seconds_step_before": began - self._last[0] if self._last[0] else 0.0,
            "seconds_passes_before": passes - self._last[1] if self._last[0] else 0.0,
        }
        self._last = (began, passes)
        return {
            "prompt_ids": [list(one.prompt_ids) for one in told],
            "completion_ids": [list(one.completion_ids) for one in told],
            "logprobs": None,  # read only where sampled and trained weights may differ
            "env_mask": [[int(own) for own in one.is_own_token] for one in told],
            **{kind: [getattr(one, kind) for one in rewards] for kind in KINDS},
        }

    def _sample(self, problems: Sequence[Problem], models: Sequence[Checkpoint], step: int) -> list[list[Rollout]]:
        """The dialogues of each problem. Raises TooManyFailed."""
        rl = self._job.rl
        sampling = Sampling(
            samples=rl.num_generations, temperature=rl.temperature, top_p=1.0, max_tokens=self._job.max_tokens
        )
        begun = [self._env.start(problem, sampling) for problem in problems]
        schedulers = [EngineScheduler(engine, model) for engine, model in zip(self._engines, models, strict=True)]
        # Each step's samples are its own: the partner, which never changes, would say the same again to a problem that
        # comes again.
        seed = self._job.seed * STEPS_APART + step
        rollouts = RolloutExecutor(self._store, schedulers, Purpose.REINFORCE, seed, failures=self._failures)
        rollouts.run_jobs(job for job, _ in begun)
        self.figures = rollouts.usage.model_dump(exclude=NOT_SAMPLED)
        refused = [job.refused for job, _ in begun if job.refused]
        if len(refused) == len(begun):
            raise TooManyFailed(f"step {step}: there is no dialogue at all: {refused[0].reason}")
        self.figures |= {f"{FAILED}{kind}": count for kind, count in Counter(one.kind for one in refused).items()}
        return [
            self._placeholders(problem) if job.refused else told()
            for problem, (job, told) in zip(problems, begun, strict=True)
        ]

    def _placeholders(self, problem: Problem) -> list[Rollout]:
        """What stands for a problem's dialogues where an engine failed: alike, and no token anybody's own, so that
        neither rewards nor loss come of them."""
        prompt, end = self._start.prompt_ids(problem), (self._start.end_id,)
        return [Rollout(prompt, end, [False], None, 0, False, False, is_complete=False)] * self._job.rl.num_generations

    def _rewards(self, problems: Sequence[Problem], groups: Sequence[Sequence[Rollout]]) -> list[Rewards]:
        """Of all dialogues, one after another."""
        judged = self._verifier.verdicts(problems, [[one.answer for one in group] for group in groups])
        self.figures["unverified"] = sum(verdicts.count(Verdict.TIMEOUT) for verdicts in judged)
        return [
            rewards
            for group, verdicts in zip(groups, judged, strict=True)
            for rewards in group_rewards(
                [
                    Rewarded(one.tokens, verdict is Verdict.RIGHT, one.is_well_formed)
                    for one, verdict in zip(group, verdicts, strict=True)
                ]
            )
        ]

    def _log_step(self, step: int, told: Sequence[Rollout], rewards: Sequence[Rewards], policy: Checkpoint) -> None:
        """Keeps the step's figures, and its weights while they are the best. Raises Collapsed."""
        rl, count = self._job.rl, len(told)
        means = {kind: sum(getattr(one, kind) for one in rewards) / count for kind in KINDS}
        praised = rl.correctness_weight * means["correctness"] + rl.format_weight * means["format"]
        tokens = sum(one.tokens for one in told) / count
        self.history = [one for one in self.history if one.step < step]
        self.history.append(StepFigures(step=step, tokens=tokens, quality_reward=praised))
        atomic_write(self._job.work / "course.json", json.dumps([one.model_dump() for one in self.history]))
        reason = collapse(self.history, rl.collapse_limits)
        if not reason and is_best(self.history):
            atomic_write(self._job.work / "best", str(policy.folder))
        self._remove_old_weights(policy.folder)
        self.figures |= {
            "dialogue_tokens": tokens,
            "cap_hit": sum(one.hit_cap for one in told) / count,
            **means,
        }
        if reason:
            raise Collapsed(
                f"the training of the {self._job.trains or 'one'} model collapsed in step {step}: {reason}. Its best "
                f"weights are in {(self._job.work / 'best').read_text()}; lower rl.learning_rate, raise rl.beta, or "
                f"widen rl.collapse_limits"
            )

    def _log_training_cost(self, told: Sequence[Rollout]) -> None:
        """What learning from a step's dialogues costs. The reference reads them, too."""
        self.figures["training_flops"] = self._start.shape.training_flops(
            [len(one.prompt_ids) + len(one.completion_ids) for one in told],
            are_weights_frozen=bool(self._job.lora),
            is_recomputed=recomputes(),
            with_reference=self._job.rl.beta > 0,
        )

    def _load_history(self) -> list[StepFigures]:
        path = self._job.work / "course.json"
        return [StepFigures.model_validate(one) for one in json.loads(path.read_text())] if path.exists() else []

    def _models(self, policy: Checkpoint) -> list[Checkpoint]:
        if self._partner is None:
            return [policy]
        return [policy, self._partner] if self._trained == 0 else [self._partner, policy]

    def _policy(self, step: int, trainer: MemorySavingGRPOTrainer) -> Checkpoint:
        """The weights as they are trained now, on disk."""
        if step == 0:
            return self._start
        folder = self._weights / str(step)
        model = trainer.accelerator.unwrap_model(trainer.model)
        write_weights(model, trainer.processing_class, folder, self.sync_check_ids)
        return Checkpoint.open(folder, self._job.engine.dtype, self._job.prompt)

    def _remove_old_weights(self, current: Path) -> None:
        best = Path((self._job.work / "best").read_text())
        for folder in self._weights.glob("*"):
            if folder not in (best, current):
                shutil.rmtree(folder)


def merged_weights(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model without its adapters' wrapper, and its weights by their names as they are served: adapters are added to
    a copy, since adding them and taking them off again would move the weights by rounding. Copies are in the host's
    memory, since beside two servers a GPU has no room for them."""
    if not isinstance(model, PeftModel):
        return model, model.state_dict()
    base = model.get_base_model()
    weights = {name: weight for name, weight in base.state_dict().items() if ".lora_" not in name}
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer):
            key = f"{name}.base_layer.weight"
            adapted = weights[key] + layer.get_delta_weight(model.active_adapter)  # type: ignore[operator]
            weights[key] = adapted.detach().cpu()
    return base, {name.replace(".base_layer.", "."): weight for name, weight in weights.items()}


def write_weights(model: Any, tokenizer: Any, folder: Path, text: list[int]) -> None:
    """The model in float32 with its proof: what it makes of `text`. Whole, or not there."""
    hidden = folder.with_name(f".{folder.name}")
    for old in (hidden, folder):
        shutil.rmtree(old, ignore_errors=True)
    plain, weights = merged_weights(model)
    plain.save_pretrained(hidden, state_dict=weights)
    tokenizer.save_pretrained(hidden)
    (hidden / SYNC_CHECK_FILE).write_text(json.dumps({"token_ids": text, "log_probs": log_probs_of(plain, text)}))
    hidden.rename(folder)
    check_weights(weights, set(getattr(plain, "all_tied_weights_keys", None) or ()), folder)


def check_weights(weights: Mapping[str, torch.Tensor], tied: Set[str], folder: Path) -> None:
    """Raises StaleWeights unless the files hold every one of the `weights` in memory, bit by bit; `tied` ones may stand
    under another's name."""
    held: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        try:
            held |= load_file(path)
        except SafetensorError as error:
            raise StaleWeights(f"{path} cannot be read: {error}") from None
    for name, weight in weights.items():
        if name in held:
            if not torch.equal(held[name].to(weight.device), weight):
                raise StaleWeights(f"{folder}: {name} is not what was trained; nothing was sampled with it")
        elif name not in tied:
            raise StaleWeights(f"{folder}: {name} is missing; nothing was sampled with it")


def grpo_config(job: RlJob) -> GRPOConfig:
    """TRL's settings: one optimizer step for each set of dialogues, all drawn with the weights that it changes."""
    cpu, pieces = not torch.cuda.is_available(), job.global_batch_size // job.per_device_train_batch_size
    return GRPOConfig(
        output_dir=str(job.work),
        seed=job.seed,
        data_seed=job.seed,
        max_steps=job.rl.max_steps,
        per_device_train_batch_size=job.per_device_train_batch_size,
        gradient_accumulation_steps=pieces,
        steps_per_generation=pieces,
        num_generations=job.rl.num_generations,
        shuffle_dataset=False,
        num_iterations=1,
        loss_type="grpo",
        scale_rewards="group",
        beta=job.rl.beta,
        temperature=job.rl.temperature,
        reward_weights=[getattr(job.rl, f"{kind}_weight") for kind in KINDS],
        learning_rate=job.learning_rate,
        warmup_steps=job.warmup_ratio,
        lr_scheduler_type="cosine",
        bf16=job.bf16,
        use_cpu=cpu,
        gradient_checkpointing=recomputes(),
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
    """Rewards were given where dialogues were judged; TRL weighs, compares and logs each by itself."""

    def reading(kind: str) -> Callable[..., list[float]]:
        def read(**columns: Any) -> list[float]:
            return columns[kind]

        read.__name__ = kind
        return read

    return [reading(kind) for kind in KINDS]


def main(job: RlJob) -> None:
    """Reinforces with servers of our own."""
    with ExitStack() as stack:
        engines = [VllmServer(job.engine, job.work / f"vllm-{index}.log") for index in range(2 if job.partner else 1)]
        store, verifier = RolloutStore(os.environ[STORE_VARIABLE]), Verifier()
        for part in (*engines, store, verifier):
            stack.callback(part.close)
        reinforce(job, engines, store, verifier)


def reinforce(job: RlJob, engines: Sequence[Engine], store: RolloutStore, verifier: Verifier) -> None:
    """Trains `job.model` to `job.output`, or on from its last checkpoint."""
    torch.manual_seed(job.seed)
    rows = [Problem.model_validate(row) for row in pq.read_table(job.rows).to_pylist()]
    start = Checkpoint.open(job.model, job.engine.dtype, job.prompt)
    partner = Checkpoint.open(job.partner, job.engine.dtype, job.prompt) if job.partner else None
    problems = {row.id: row for row in rows}
    order = problem_order(list(problems), job)
    sampler = RolloutFunction(job, start, problems, engines, partner, store, verifier)
    trainer = MemorySavingGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        args=grpo_config(job),
        reward_funcs=reward_functions(),  # type: ignore[arg-type]
        train_dataset=Dataset.from_dict({"prompt": order}),
        processing_class=start.tokenizer,
        rollout_func=sampler,  # type: ignore[arg-type]
        peft_config=adapters(job),
    )
    trainer.add_callback(ProgressCallback(job.progress, lambda: sampler.figures))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(job.work))
    save(job, trainer.accelerator.unwrap_model(trainer.model), start.tokenizer, sampler.sync_check_ids)


def problem_order(names: Sequence[str], job: RlJob) -> list[str]:
    """The problems of all steps, in one epoch: a resumed training finds its place in it, which it would not in a second
    epoch of a sampler that shuffles. No problem comes twice in a step. Raises TooFewProblems."""
    if len(names) < job.rl.problems_per_step:
        raise TooFewProblems(
            f"{len(names)} problems are left to train on, and each step takes rl.problems_per_step "
            f"({job.rl.problems_per_step}); lower "
            f"that, or give more problems"
        )
    luck, order = random.Random(f"reinforce/{job.seed}"), list[str]()
    while len(order) < job.rl.max_steps * job.rl.problems_per_step:
        shuffled = luck.sample(list(names), len(names))
        order += shuffled[: len(names) // job.rl.problems_per_step * job.rl.problems_per_step]
    return order[: job.rl.max_steps * job.rl.problems_per_step]


def env_for(job: RlJob, start: Checkpoint) -> RolloutEnv:
    if job.trains is None or job.protocol is None:
        return SingleModelEnv(start)
    return DialogueEnv(TurnCodec(start, job.protocol), Speaker(job.trains))


def run(job: RlJob) -> None:
    """Does the job, and leaves word where it ends for a reason that has a remedy."""
    try:
        main(job)
    except (Collapsed, StaleWeights, WeightSyncError, TooManyFailed, TooFewProblems) as error:
        job.exit_file.write_text(f"{ExitReason.GIVEN_UP}\n{error}")
        raise


if __name__ == "__main__":
    record_exit_reason(RlJob.model_validate_json(Path(sys.argv[1]).read_text()), run)
