"""The step of GRPO: trains one model in dialogue with a frozen partner (Long⊗Short) or alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from conf.long_short import Grpo, Protocol, Who
from models.inference.devices import beside_trainer, replica_gpus, visible_gpus
from models.training.launcher import FAILED, GrpoJob, job_paths, start_of
from reasoning.records import Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import StepContext
from tasks.runtime.step_inputs import StepInputs
from tasks.steps.training import run_job


class GrpoInputs(StepInputs):
    """The model to train, its partner and their protocol. Partner and protocol are None for training alone."""

    model: ArtifactRef
    partner: ArtifactRef | None
    problems: ArtifactRef
    trains: Who | None
    protocol: Protocol | None
    rl: Grpo
    max_tokens: int
    """Limit of a completion where the model is trained alone."""
    seed: int


@step("training")
def train_grpo(ctx: StepContext, inputs: GrpoInputs) -> ArtifactRef:
    """The checkpoint of `inputs.model` after `rl.max_steps` steps. Raises TooFewGpus."""
    partner = ctx.resources.checkpoint(inputs.partner) if inputs.partner else None
    start, split = ctx.resources.checkpoint(inputs.model), beside_trainer(visible_gpus())
    replica_gpus(ctx.resources.engine_settings, split.servers)
    if split.trainer:
        ctx.progress.note(f"trainer on GPU {split.trainer[0]}, its servers on {', '.join(split.servers)}")

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        sampled = {name: sum(line.get(name, 0) for line in figures) for name in Usage.model_fields}
        return Usage(**sampled) + Usage(flops=sum(line.get("training_flops", 0) for line in figures))

    def failed_problems(figures: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Problems for which no dialogue could be sampled, by reason. Training skips them."""
        counts = Counter[str]()
        for line in figures:
            counts.update({name: value for name, value in line.items() if name.startswith(FAILED)})
        return dict(counts)

    return run_job(
        ctx,
        f"grpo-{inputs.trains or 'alone'}",
        rows_in=inputs.problems.rows,
        usage=usage,
        counts=failed_problems,
        make_job=lambda scratch: GrpoJob(
            **start_of(start, inputs.rl.lora),
            rows=ctx.artifacts.local_path(inputs.problems),
            **job_paths(scratch),
            seed=inputs.seed,
            learning_rate=inputs.rl.learning_rate,
            global_batch_size=inputs.rl.batch,
            per_device_train_batch_size=inputs.rl.per_device_train_batch_size,
            warmup_ratio=inputs.rl.warmup_ratio,
            max_length=None,
            log_every=1,
            save_steps=inputs.rl.save_steps,
            trains=inputs.trains,
            partner=partner.folder if partner else None,
            partner_adapter=partner.adapter if partner else None,
            protocol=inputs.protocol,
            rl=inputs.rl,
            max_tokens=inputs.max_tokens,
            engine=ctx.resources.engine_settings,
            prompt=ctx.resources.prompt,
            store=ctx.resources.rollouts_url,
            bf16=inputs.rl.bf16,
            lora=inputs.rl.lora,
        ),
    )
