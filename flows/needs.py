"""What a run needs of the machine, from its settings: models, GPU memory, disk, data sets, language models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conf.base import Settings, sections
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.engine import Engine
from conf.evaluation import Evaluated
from conf.llm import Llm
from conf.long_short import Grpo, LongShort
from conf.multi_seed import MultiSeed, experiment
from conf.problems import Hub
from conf.prompts import BUNDLED
from conf.training import Lora, Training
from flows.doctor.checks import GpuUse
from models.checkpoints.adapters import MAX_RANK
from models.checkpoints.checkpoint import Checkpoint, is_on_hub
from models.checkpoints.memory_estimates import grpo_bytes, least_serving_bytes, trained_parameters, training_bytes

TRAININGS = ("training", "sft", "dpo")
"""Names of sections of type `Training`."""
LARGER = "take a larger GPU"


def prefix(settings: Settings) -> str:
    """What stands before a section of the experiment in `--set`."""
    return f"{settings.of.pipeline.replace('-', '_')}." if isinstance(settings, MultiSeed) else ""


def model_names(run: Any) -> list[str]:
    """The model to train, first, its teacher, and reference models."""
    teacher = getattr(run, "teacher", "")
    named = teacher if isinstance(teacher, str) else getattr(teacher, "model", "")
    references = run.evaluation.references if isinstance(run, Evaluated) else ()
    return list(dict.fromkeys(filter(None, (getattr(run, "model", BUNDLED), named, *references))))


def data_sets(run: Settings) -> list[str]:
    """Names of data sets that are read from the hub."""
    return list(dict.fromkeys(source.name for source in sections(run, Hub) if is_on_hub(source.name)))


def llms(run: Settings) -> list[Llm]:
    """The endpoints of language models."""
    return list(sections(run, Llm))


def trains_beside_servers(run: Any) -> bool:
    """Whether a trainer runs while servers sample for it."""
    return isinstance(run, LongShort) and bool(run.rl.rounds or run.one_model)


def gpu_uses(settings: Settings, models: Mapping[str, Checkpoint], gpus: int = 1) -> Iterator[GpuUse]:
    """`models`: by name, those that are on this machine. `gpus`: how many the run may use."""
    run, before = experiment(settings), prefix(settings)
    trains = [name for name in TRAININGS if isinstance(getattr(run, name, None), Training)]
    if trains or not run.engine.endpoints:  # else the servers elsewhere do all the sampling
        for name, model in models.items():
            yield _serving(name, model, run.engine, before, gpus)
    if (base := models.get(model_names(run)[0])) is not None:
        for name in trains:
            yield _training(f"{before}{name}", base, getattr(run, name), gpus)
        if trains_beside_servers(run):
            yield _grpo(base, run, before, has_own_gpu=gpus > 1)


def _serving(name: str, model: Checkpoint, engine: Engine, before: str, gpus: int) -> GpuUse:
    share = engine.gpu_memory_utilization / engine.servers_per_gpu
    least = least_serving_bytes(model, engine) / engine.tensor_parallel_size
    half = f"set {before}engine.dtype=bfloat16, " * (engine.dtype == "float32")
    more = 2 * engine.tensor_parallel_size
    split = f"set {before}engine.tensor_parallel_size={more}, " * (more <= gpus)
    room = f"raise {before}engine.gpu_memory_utilization, lower {before}engine.max_model_len, or {LARGER}"
    return GpuUse(f"serving {name}", least, least, share, f"{half}{split}{room}")


def _training(name: str, model: Checkpoint, how: Training, gpus: int) -> GpuUse:
    rows = "per_device_train_batch_size"
    usual, least = (training_bytes(model, one, gpus) for one in (how, how.model_copy(update={rows: 1})))
    sharded = f"shard it over the GPUs (--set {name}.fsdp=true), " * (gpus > 1 and not how.fsdp)
    adapters = f"train adapters (--set {name}.lora.r=32), " * (how.lora is None)
    remedy = f"{sharded}{adapters}lower {name}.max_length, or {LARGER}"
    return GpuUse(f"[{name}]", least, usual, 1.0, remedy, f"set {name}.{rows}=1; a run halves it when memory runs out")


def _grpo(model: Checkpoint, run: LongShort, before: str, has_own_gpu: bool) -> GpuUse:
    """GRPO shares a single GPU with its two servers."""
    least, usual = (grpo_bytes(model, run.rl, tokens) for tokens in (0, run.protocol.max_dialogue_tokens))
    adapters = f"train adapters (--set {before}rl.lora.r=32), " * (run.rl.lora is None)
    less = f"lower {before}engine.gpu_memory_utilization, " * (not has_own_gpu)
    shorter = f"{less}lower {before}protocol.max_turn_tokens: the longest dialogue may not fit"
    share = 1.0 if has_own_gpu else 1 - run.engine.gpu_memory_utilization
    return GpuUse(f"[{before}rl]", least, usual, share, f"{adapters}{less}{LARGER}", shorter)


def disk_bytes(settings: Settings, model: Checkpoint) -> float:
    """Every trained model in float32, or its adapters, and the trainer's state (12 bytes per trained parameter) twice,
    while a new one replaces the old. GRPO also keeps its current and its best weights, or adapters."""
    run = experiment(settings)
    made = trained_models(run)
    seeds = len(settings.seeds) if isinstance(settings, MultiSeed) else 1
    saved = sum(_saved_parameters(model, [how.lora for how in trainings]) for trainings in made) * seeds
    saved += 2 * trained_parameters(model, run.rl.lora) if isinstance(run, LongShort) else 0
    state = max((trained_parameters(model, trainings[-1].lora) for trainings in made), default=0)
    return 4 * saved + 2 * 12 * state


def _saved_parameters(model: Checkpoint, trainings: Sequence[Lora | None]) -> int:
    """Of a model after these trainings: adapters are joined; whole models remain whole."""
    if not all(lora and not lora.merge for lora in trainings):
        return trained_parameters(model, None)
    return trained_parameters(model, Lora(r=min(MAX_RANK, sum(lora.r for lora in trainings if lora))))


def trained_models(run: Any) -> Sequence[Sequence[Training | Grpo]]:
    """For each checkpoint that a run makes, how it was trained from the base model on."""
    if isinstance(run, Dto):
        return [[run.training]] * (1 + len(run.controls.trained))
    if isinstance(run, CotDistillation):
        method = [[run.sft], [run.sft, run.dpo]]
        more = {"dpo": [[run.dpo]], "sft-uncompressed": [[run.sft]], "shuffled-ratings": method}
        return method + [made for name in run.variants for made in more.get(name, ())]
    if isinstance(run, LongShort):
        rounds = Counter[str]()
        made: list[Sequence[Training | Grpo]] = [[run.sft], [run.sft]]
        for who in run.rl.rounds:
            rounds[who] += 1
            made.append([run.sft, *[run.rl] * rounds[who]])
        return [*made, *[[run.rl]] * run.one_model]
    return []
