"""GRPO trains on the model's own tokens only, and its exact weights reach the server."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

from conf.engine import Engine
from conf.long_short import CollapseLimits, Grpo, Protocol
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, FailedRequest, Failure, Finished, Request
from models.inference.rollout_executor import TooManyFailed
from models.inference.rollout_store import RolloutStore
from models.inference.scripted_engine import ScriptedEngine
from models.training.grpo import (
    Collapsed,
    MemorySavingGRPOTrainer,
    RolloutFunction,
    StaleWeights,
    TooFewProblems,
    check_weights,
    grpo_config,
    problem_order,
    reward_functions,
    run,
    train_grpo,
    write_weights,
)
from models.training.launcher import GrpoJob
from models.training.train import uses_gradient_checkpointing
from models.training.weights import log_probs, log_probs_of
from reasoning.answers.verifier import Verifier
from reasoning.records import Problem, TextPart
from reasoning.token_ids import TokenIds
from tests.models.training.jobs import common

MODEL = Checkpoint.open(TINY_MODEL)
PASSES = "_get_per_token_logps_and_entropies"
TURNS = (
    ("<think>", "\nStart with 4.\n4+3=7.\n</think>", "<answer>", "\nIt is 7.\n</rethink>", "<think>\nWait.\n</think>"),
    ("<think>", "\n4+3=8.\n</think>", "<answer>", "\nThe answer is \\boxed{8}.\n</answer>", ""),
)


def job(folder: Path, **rl: Any) -> GrpoJob:
    return GrpoJob(
        **common(folder),
        global_batch_size=4,
        per_device_train_batch_size=4,
        max_length=None,
        save_steps=1,
        trains="short",
        partner=TINY_MODEL,
        protocol=Protocol(),
        rl=Grpo(problems_per_step=2, num_generations=2, per_device_train_batch_size=4, **rl),
        max_tokens=64,
        engine=Engine(servers_per_gpu=2),
        store="",
    )


def dialogues(names: list[str], trainer: Any) -> dict[str, Any]:
    """Two dialogues per problem; the trained model sampled the second and fourth part."""
    _ = trainer
    rows = [(number, TURNS[number % 2]) for number in range(len(names))]
    ids = [[MODEL.encode(part) for part in parts] for _, parts in rows]
    return {
        "prompt_ids": [list(MODEL.encode(f"<|short|>Ann has {number}.")) for number, _ in rows],
        "completion_ids": [[token for part in parts for token in part] for parts in ids],
        "env_mask": [[index % 2 for index, part in enumerate(parts) for _ in part] for parts in ids],
        "logprobs": None,
        "correctness": [float(number % 2) for number, _ in rows],
        "format": [1.0] * len(rows),
        "length": [0.5 - 0.75 * (number % 2) for number, _ in rows],
    }


@pytest.fixture
def trainer_and_inputs(tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    return trained(tmp_path, AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32))


def trained(tmp_path: Path, model: Any) -> tuple[Any, dict[str, Any]]:
    """A trainer in float32, and the inputs of its loss."""
    trainer: Any = MemorySavingGRPOTrainer(
        model=model,
        args=grpo_config(job(tmp_path)),
        reward_funcs=reward_functions(),  # type: ignore[arg-type]
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=AutoTokenizer.from_pretrained(TINY_MODEL),
        rollout_func=dialogues,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": name} for name in "aabb"])
    with torch.no_grad():  # away from the reference, where the ratio is 1
        for weight in trainer.model.parameters():
            weight += 0.002 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return trainer, inputs


def own(inputs: dict[str, Any]) -> torch.Tensor:
    return (inputs["completion_mask"] * inputs["tool_mask"]).bool()


def by_length(inputs: dict[str, Any]) -> torch.Tensor:
    """The order in which dialogues pass through the model."""
    return inputs["completion_mask"].sum(1).argsort()  # all prompts have the same length


def gradients(trainer: Any, inputs: dict[str, Any], call: Callable[..., Any] | None = None) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    trainer._compute_loss(call or trainer.model, inputs).backward()
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def test_only_own_tokens_have_a_gradient(trainer_and_inputs: tuple[Any, dict[str, Any]]):
    trainer, inputs = trainer_and_inputs
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    # Logits are a linear map of this module's output at each position.
    hook = trainer.model.model.norm.register_forward_hook(keep)
    gradients(trainer, inputs)
    hook.remove()
    (hidden,) = seen
    assert hidden.grad is not None
    predicting = hidden.grad[:, inputs["prompt_ids"].shape[1] - 1 : -1]
    touched, own_mask = (predicting != 0).any(-1), own(inputs)[by_length(inputs)]
    assert not touched[~own_mask].any()
    assert touched[own_mask].float().mean() > 0.9  # a token with probability 1 has no gradient
    assert not hidden.grad[:, : inputs["prompt_ids"].shape[1] - 1].any()
    assert not hidden.grad[:, -1].any()


def test_reference_passes_respect_the_micro_batch(trainer_and_inputs: tuple[Any, dict[str, Any]]):
    trainer, inputs = trainer_and_inputs
    rows: list[int] = []

    def counted(*, input_ids: torch.Tensor, **others: Any) -> Any:
        rows.append(len(input_ids))
        return trainer.model(input_ids=input_ids, **others)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    getattr(trainer, PASSES)(counted, ids, mask, inputs["completion_ids"].shape[1], batch_size=1)
    assert rows == [1, 1, 1, 1]


def test_the_load_balancing_loss_is_trained(tmp_path: Path):
    """For mixture-of-experts models, TRL's forward also returns the load-balancing loss."""
    config = Qwen3MoeConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.1,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "experts")
    trainer, inputs = trained(tmp_path, Qwen3MoeForCausalLM.from_pretrained(tmp_path / "experts"))
    losses = [trainer._compute_loss(trainer.model, inputs)]
    trainer.router_aux_loss_coef = 0.2
    losses.append(trainer._compute_loss(trainer.model, inputs))
    assert trainer.aux_loss_enabled
    assert float(losses[1] - losses[0]) > 0.01


@pytest.mark.parametrize("batch", [1, 3])
def test_less_padding_does_not_change_the_gradient(
    trainer_and_inputs: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, batch: int
):
    trainer, inputs = trainer_and_inputs
    pad = torch.nn.functional.pad
    for name in ("prompt_ids", "prompt_mask"):  # as if the batch contained a longer problem
        inputs[name] = pad(inputs[name], (7, 0))
    for name in ("completion_ids", "completion_mask", "tool_mask", "ref_per_token_logps"):
        inputs[name] = pad(inputs[name], (0, 5))
    monkeypatch.setattr("models.training.grpo.LOGPROB_BATCH", batch)
    cells: list[int] = []

    def counted(*, input_ids: torch.Tensor, **others: Any) -> Any:
        cells.append(input_ids.numel())
        return trainer.model(input_ids=input_ids, **others)

    found = gradients(trainer, inputs, counted)
    tokens = int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
    padded = sum(inputs[name].numel() for name in ("prompt_mask", "completion_mask"))
    assert sum(cells) == tokens if batch == 1 else tokens < sum(cells) < padded
    monkeypatch.setattr(MemorySavingGRPOTrainer, PASSES, getattr(GRPOTrainer, PASSES))
    for name, gradient in gradients(trainer, inputs).items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_labels_at_the_partners_tokens_change_nothing(trainer_and_inputs: tuple[Any, dict[str, Any]]):
    trainer, inputs = trainer_and_inputs
    expected = gradients(trainer, inputs)
    own_mask = own(inputs)[by_length(inputs)]

    def relabelled(*, labels: torch.Tensor, **others: Any) -> Any:
        """The model with changed labels at the partner's tokens and unchanged inputs."""
        changed, width = labels.clone(), own_mask.shape[1]
        part = changed[:, -width:]
        part[~own_mask & (part != -100)] = 11
        assert not torch.equal(changed, labels)
        return trainer.model(labels=changed, **others)

    found = gradients(trainer, inputs, relabelled)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_the_gradient_matches_finite_differences(trainer_and_inputs: tuple[Any, dict[str, Any]]):
    trainer, inputs = trainer_and_inputs
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        old, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, own(inputs).shape[1])
    inputs |= {"old_per_token_logps": old + 0.05}  # a ratio other than 1 that is not clipped
    trainer.model.double()
    found = gradients(trainer, inputs)
    name, weight = next((n, w) for n, w in trainer.model.named_parameters() if "layers.0.mlp.up_proj" in n)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)

    def loss(step: float) -> float:
        with torch.no_grad():
            weight.add_(step * direction)
            value = trainer._compute_loss(trainer.model, inputs).item()
            weight.sub_(step * direction)
        return value

    step = 1e-3
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx((found[name] * direction).sum().item(), rel=1e-2)


def test_advantages_are_per_problem_and_rewards_are_logged_separately(trainer_and_inputs: tuple[Any, dict[str, Any]]):
    trainer, inputs = trainer_and_inputs
    # 0 + 1 + 0.5 against 1 + 1 - 0.25: their mean is 1.625, their deviation 0.25 / √2.
    share = 0.125 / (0.25 / 2**0.5 + 1e-4)
    assert inputs["advantages"].tolist() == pytest.approx([-share, share] * 2)
    logged = trainer._metrics["train"]
    assert [logged[f"rewards/{kind}/mean"] for kind in ("correctness", "format", "length")] == [[0.5], [1.0], [0.125]]


def check(model: Any, folder: Path) -> None:
    check_weights(model.state_dict(), {"lm_head.weight"}, folder)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Any, Path]:
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    folder = tmp_path / "weights" / "7"
    folder.parent.mkdir()
    write_weights(model, MODEL, folder, [5, 6, 7])
    return model, folder


def test_weights_are_written_completely_with_their_sync_check(written: tuple[Any, Path]):
    model, folder = written
    check(model, folder)
    sync_check = json.loads((folder / "sync_check.json").read_text())
    assert sync_check["token_ids"] == [5, 6, 7]
    assert sync_check["log_probs"] == pytest.approx(log_probs_of(model, [5, 6, 7]))
    assert Checkpoint.open(folder).tensor_sizes == MODEL.tensor_sizes


def test_stale_weights_are_detected(written: tuple[Any, Path]):
    model, folder = written
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    with pytest.raises(StaleWeights, match="differs from the trained weight"):
        check(model, folder)


def test_weights_damaged_on_disk_are_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    save = type(model).save_pretrained

    def lose_the_end(self: Any, folder: Path, **others: Any) -> None:
        save(self, folder, **others)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    monkeypatch.setattr(type(model), "save_pretrained", lose_the_end)
    with pytest.raises(StaleWeights, match="cannot be read"):
        write_weights(model, MODEL, tmp_path / "weights" / "7", [5, 6, 7])


def test_truncated_weights_are_detected(written: tuple[Any, Path]):
    model, folder = written
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StaleWeights, match="cannot be read"):
        check(model, folder)


def test_missing_weights_are_detected(written: tuple[Any, Path]):
    model, folder = written
    (folder / "model.safetensors").unlink()
    with pytest.raises(StaleWeights, match="is missing"):
        check(model, folder)


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Any, Path]:
    """A model with adapters, and the folder where they are written."""
    plain = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    model: Any = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += 0.01 * ("lora_B" in name)
    folder = tmp_path / "weights" / "7"
    folder.parent.mkdir()
    return model, folder


def test_adapters_alone_are_written(adapted: tuple[Any, Path]):
    model, folder = adapted
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    write_weights(model, MODEL, folder, [5, 6, 7])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    weights = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    assert [path.name for path in weights] == ["adapter_model.safetensors"]
    assert 15 * weights[0].stat().st_size < (TINY_MODEL / "model.safetensors").stat().st_size
    sync_check = json.loads((folder / "sync_check.json").read_text())
    assert log_probs(TINY_MODEL, [5, 6, 7], folder) == pytest.approx(sync_check["log_probs"], abs=1e-5)


def test_stale_adapters_are_detected(adapted: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch):
    model, folder = adapted

    def save_others(weights: dict[str, torch.Tensor], *arguments: Any, **others: Any) -> None:
        save_file({name: weight + 1e-6 for name, weight in weights.items()}, *arguments, **others)

    monkeypatch.setattr("models.training.weights.save_file", save_others)
    with pytest.raises(StaleWeights, match="differs from the trained weight"):
        write_weights(model, MODEL, folder, [5, 6, 7])


def test_a_checkpoint_with_adapters_is_another_model_with_the_same_tokenizer(adapted: tuple[Any, Path]):
    model, folder = adapted
    write_weights(model, MODEL, folder, [5, 6, 7])
    start = Checkpoint.open(TINY_MODEL)
    _ = start.tokenizer
    one = start.with_adapter(folder)
    assert (one.base, one.weights_fingerprint) == (start, start.fingerprint)
    assert one.fingerprint not in ("", start.fingerprint)
    assert one.tokenizer is start.tokenizer
    assert start.with_adapter(folder) == one
    config = folder / "adapter_config.json"
    named = json.loads(config.read_text())
    config.write_text(json.dumps(named | {"target_modules": named["target_modules"][::-1]}))  # as another process may
    assert start.with_adapter(folder).fingerprint == one.fingerprint
    with torch.no_grad():
        next(weight for name, weight in model.named_parameters() if "lora_B" in name)[0, 0] += 1e-6
    write_weights(model, MODEL, folder.with_name("8"), [5, 6, 7])
    assert start.with_adapter(folder.with_name("8")).fingerprint != one.fingerprint


RNG = random.Random(5)


def dialogue_script(model: Checkpoint, request: Request, number: int) -> Completion:
    """Long proposes a number; Short answers, sometimes after asking again."""
    if model.decode(request.prompt_ids).endswith("<think>"):
        text = f"\nIt is {RNG.choice('789')}.{' Wait.' * RNG.randrange(4)}\n</think>"
    else:
        text = RNG.choice(["\nSo far 7.\n</rethink>", "\nIt is \\boxed{7}.\n</answer>", "\n\\boxed{8}\n</answer>"])
    return Completion(MODEL.encode(text + "<|endoftext|>"), True)


def problems(folder: Path) -> None:
    rows = [Problem(id=f"p{n}", prompt=(TextPart(text=f"Ann has {n}."),), answer="7") for n in range(6)]
    pq.write_table(pa.Table.from_pylist([row.model_dump(mode="json") for row in rows]), folder / "rows.parquet")


def run_grpo(
    grpo_job: GrpoJob,
    url: str,
    script: Callable[..., Completion] = dialogue_script,
    make: Callable[..., ScriptedEngine] = ScriptedEngine,
) -> int:
    """Runs GRPO on scripted engines; returns the number of completions they sampled."""
    engines = [make(script) for _ in range(2 if grpo_job.partner else 1)]
    store, verifier = RolloutStore(url), Verifier()
    try:
        train_grpo(grpo_job, engines, store, verifier)
    finally:
        store.close()
        verifier.close()
    return sum(engine.completions for engine in engines)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_interrupted_round_resumes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    for folder in (complete, interrupted):
        folder.mkdir()
        problems(folder)
    url = f"sqlite:///{tmp_path / 'store'}"
    sampled = run_grpo(job(complete, max_steps=5), url)
    lines = [json.loads(line) for line in (complete / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert sum(line["generated_tokens"] for line in lines if "loss" in line) > 0
    assert {"correctness", "format", "length", "dialogue_tokens", "seconds_sync"} <= lines[0].keys()

    def die(self: Any, *arguments: Any) -> None:
        note(self, *arguments)
        if arguments[0] == 4:  # six problems, two per step: in the second epoch
            raise KeyboardInterrupt

    note = RolloutFunction._log_step
    monkeypatch.setattr(RolloutFunction, "_log_step", die)
    with pytest.raises(KeyboardInterrupt):
        run_grpo(job(interrupted, max_steps=5), url)
    monkeypatch.undo()
    assert run_grpo(job(interrupted, max_steps=5), url) == 0  # all dialogues were stored, so the weights are identical
    assert sampled > 0
    resumed = [json.loads(line) for line in (interrupted / "progress.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in resumed if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]
    found = weights_of(interrupted / "model")
    assert all(torch.equal(found[name], weight) for name, weight in weights_of(complete / "model").items())
    assert any(not torch.equal(found[name], weight) for name, weight in weights_of(TINY_MODEL).items())
    assert len(json.loads((interrupted / "checkpoints" / "training_health.json").read_text())) == 5
    assert len(list((interrupted / "checkpoints" / "weights").iterdir())) <= 2  # the best and the last


def test_problems_are_distinct_within_a_step_and_equally_frequent(tmp_path: Path):
    # Two per step: one of seven is left out in each epoch.
    order = problem_order(list("abcdefg"), job(tmp_path, max_steps=9))
    steps = [order[at : at + 2] for at in range(0, 18, 2)]
    assert len(steps) == 9
    assert all(len(set(step)) == 2 for step in steps)
    for epoch in (order[:6], order[6:12], order[12:]):
        assert len(set(epoch)) == 6
    assert order != problem_order(list("abcdefg"), job(tmp_path, max_steps=9).model_copy(update={"seed": 1}))
    with pytest.raises(TooFewProblems, match="1 problems are left"):
        problem_order(["a"], job(tmp_path))


def test_samples_are_new_when_a_problem_comes_again(tmp_path: Path):
    problems(tmp_path)
    run_grpo(job(tmp_path, max_steps=7), f"sqlite:///{tmp_path / 'store'}")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["reused_completions"] for line in lines if "loss" in line] == [0] * 7


def test_a_single_model_can_be_trained(tmp_path: Path):
    problems(tmp_path)

    def think(model: Checkpoint, request: Request, number: int) -> Completion:
        text = f"It is 7.{' Wait.' * (number % 3)}\n</think>\nThe answer is \\boxed{{{number % 2 + 6}}}."
        return Completion(MODEL.encode(text + "<|endoftext|>"), True)

    grpo_job = job(tmp_path, max_steps=1).model_copy(update={"trains": None, "partner": None, "protocol": None})
    assert run_grpo(grpo_job, f"sqlite:///{tmp_path / 'store'}", think) == 4
    line = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[0])
    assert (line["correctness"], line["format"]) == (0.5, 1.0)


class FirstProblemOnly(ScriptedEngine):
    """Serves only the first problem of a step."""

    served = TokenIds()

    def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
        self.served = self.served or request.prompt_ids
        if request.prompt_ids != self.served:
            return FailedRequest(request_id, "no reply", Failure.TIMED_OUT)
        return super().serve(model, request_id, request)


def single_model_job(folder: Path, **rl: Any) -> GrpoJob:
    return job(folder, max_steps=1, **rl).model_copy(update={"trains": None, "partner": None, "protocol": None})


def test_a_failed_problem_is_not_trained_on(tmp_path: Path):
    problems(tmp_path)
    text = MODEL.encode("It is 7.\n</think>\nThe answer is \\boxed{7}.<|endoftext|>")
    url = f"sqlite:///{tmp_path / 'store'}"
    assert run_grpo(single_model_job(tmp_path, beta=0.0), url, lambda *_: Completion(text, True), FirstProblemOnly) == 2
    (line, *_) = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert line["failed: timed-out"] == 1
    assert (line["correctness"], line["dialogue_tokens"]) == (1.0, len(text))  # over complete dialogues
    prompt = len(MODEL.prompt_ids(Problem(id="p", prompt=(TextPart(text="Ann has 0."),), answer="7")))
    lengths = [prompt + len(text)] * 2 + [prompt + 1] * 2
    assert line["training_flops"] == pytest.approx(
        MODEL.shape.training_flops(lengths, gradient_checkpointing=uses_gradient_checkpointing())
    )
    found = weights_of(tmp_path / "model")  # the two dialogues are identical, so their advantage is 0
    assert all(torch.equal(found[name], weight.float()) for name, weight in weights_of(TINY_MODEL).items())


def test_a_step_without_dialogues_ends_the_round(tmp_path: Path):
    class NoProblem(FirstProblemOnly):
        served = TokenIds((2**32 - 1,))

    problems(tmp_path)
    with pytest.raises(TooManyFailed, match="dialogues: 2 of 2 failed"):
        run_grpo(single_model_job(tmp_path), f"sqlite:///{tmp_path / 'store'}", make=NoProblem)


def test_a_collapse_ends_the_round_and_names_the_best_weights(tmp_path: Path):
    problems(tmp_path)
    seen: list[str] = []

    def growing_script(model: Checkpoint, request: Request, number: int) -> Completion:
        """Short's turns get longer with each set of weights."""
        if model.decode(request.prompt_ids).endswith("<answer>"):
            seen.extend({model.fingerprint} - set(seen))
            text = f"\n{'Hm. ' * (30 * len(seen) ** 2)}\\boxed{{7}}\n</answer>"
        else:
            text = "\nIt is 7.\n</think>"
        return Completion(MODEL.encode(text + "<|endoftext|>"), True)

    grpo_job = job(tmp_path, max_steps=9, collapse_limits=CollapseLimits(max_tokens=1.5))
    with pytest.raises(Collapsed, match="collapsed in step 1: dialogues went from") as caught:
        run_grpo(grpo_job, f"sqlite:///{tmp_path / 'store'}", growing_script)
    # Step 1 has the same reward as step 0, but it collapsed.
    assert (grpo_job.work / "best").read_text() == str(TINY_MODEL)
    assert str(TINY_MODEL) in str(caught.value)


def test_the_exit_reason_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def collapse(grpo_job: GrpoJob) -> None:
        raise Collapsed("it did")

    monkeypatch.setattr("models.training.grpo.main", collapse)
    with pytest.raises(Collapsed):
        run(job(tmp_path))
    assert (tmp_path / "exit_reason").read_text() == "given-up\nit did"
