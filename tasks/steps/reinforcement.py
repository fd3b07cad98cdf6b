"""Reinforcement as a step: a model and its partner in, a better model out (Long⊗Short, section C.5).

Knows: jobs and artifacts. Must not know: TRL, dialogues, rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from conf.long_short import Protocol, Reinforcement, Who
from models.training.launcher import FAILED, RlJob
from reasoning.records import Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import StepContext
from tasks.steps.training import run_job


@step
def reinforce(
    ctx: StepContext,
    model: ArtifactRef,
    partner: ArtifactRef | None,
    problems: ArtifactRef,
    trains: Who | None,
    protocol: Protocol | None,
    rl: Reinforcement,
    max_tokens: int,
    seed: int,
) -> ArtifactRef:
    """A checkpoint of `model` after `rl.max_steps`: as one of two where it has a partner, alone where it has none.
    `max_tokens` is the limit of what it says alone."""

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        sampled = {name: sum(line.get(name, 0) for line in figures) for name in Usage.model_fields}
        return Usage(**sampled) + Usage(flops=sum(line.get("training_flops", 0) for line in figures))

    def failed(figures: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Problems without dialogues, of which nothing was learnt."""
        counts = Counter[str]()
        for line in figures:
            counts.update({name: value for name, value in line.items() if name.startswith(FAILED)})
        return dict(counts)

    return run_job(
        ctx,
        f"grpo-{trains or 'alone'}",
        rows_in=problems.rows,
        usage=usage,
        counts=failed,
        job=lambda scratch: RlJob(
            model=ctx.resources.checkpoint(model).folder,
            rows=ctx.artifacts.local_path(problems),
            output=scratch / "model",
            work=scratch / "checkpoints",
            progress=scratch / "progress.jsonl",
            exit_file=scratch / "exit_reason",
            seed=seed,
            learning_rate=rl.learning_rate,
            global_batch_size=rl.batch,
            per_device_train_batch_size=rl.per_device_train_batch_size,
            warmup_ratio=rl.warmup_ratio,
            max_length=None,
            log_every=1,
            save_steps=rl.save_steps,
            trains=trains,
            partner=ctx.resources.checkpoint(partner).folder if partner else None,
            protocol=protocol,
            rl=rl,
            max_tokens=max_tokens,
            engine=ctx.resources.engine_settings,
            prompt=ctx.resources.prompt,
            store=ctx.resources.rollouts_url,
            bf16=rl.bf16,
            lora=rl.lora,
        ),
    )
