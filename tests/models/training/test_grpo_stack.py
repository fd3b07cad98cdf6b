"""What the reinforced model learns from: its own tokens alone; and that its very weights reach the server."""

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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

from conf.engine import Engine
from conf.long_short import CollapseLimits, Protocol, Reinforcement
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Failure, Finished, Refused, Request
from models.inference.rollout_engine import TooManyFailed
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
    log_probs_of,
    problem_order,
    reinforce,
    reward_functions,
    run,
    write_weights,
)
from models.training.launcher import RlJob
from models.training.train import recomputes
from reasoning.answers.verifier import Verifier
from reasoning.records import Problem, TextPart

MODEL = Checkpoint.open(TINY_MODEL)
PASSES = "_get_per_token_logps_and_entropies"
TURNS = (
    ("<think>", "\nStart with 4.\n4+3=7.\n</think>", "<answer>", "\nIt is 7.\n</rethink>", "<think>\nWait.\n</think>"),
    ("<think>", "\n4+3=8.\n</think>", "<answer>", "\nThe answer is \\boxed{8}.\n</answer>", ""),
)


def job(folder: Path, **rl: Any) -> RlJob:
    return RlJob(
        model=TINY_MODEL,
        rows=folder / "rows.parquet",
        output=folder / "out",
        work=folder / "work",
        progress=folder / "progress.jsonl",
        exit_file=folder / "exit_reason",
        seed=0,
        learning_rate=1e-3,
        global_batch_size=4,
        per_device_train_batch_size=4,
        warmup_ratio=0.0,
        max_length=None,
        log_every=1,
        save_steps=1,
        trains="short",
        partner=TINY_MODEL,
        protocol=Protocol(),
        rl=Reinforcement(problems_per_step=2, num_generations=2, per_device_train_batch_size=4, **rl),
        max_tokens=64,
        engine=Engine(servers_per_gpu=2),
        store="",
    )


def dialogues(names: list[str], trainer: Any) -> dict[str, Any]:
    """Two dialogues of each problem; the second and fourth part is the trained model's."""
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
def made(tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    return trained(tmp_path, AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32))


def trained(tmp_path: Path, model: Any) -> tuple[Any, dict[str, Any]]:
    """A trainer in float32, and what its loss reads."""
    trainer: Any = MemorySavingGRPOTrainer(
        model=model,
        args=grpo_config(job(tmp_path).model_copy(update={"bf16": False})),
        reward_funcs=reward_functions(),  # type: ignore[arg-type]
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=AutoTokenizer.from_pretrained(TINY_MODEL),
        rollout_func=dialogues,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": name} for name in "aabb"])
    with torch.no_grad():  # away from where the reference is, and the ratio is 1
        for weight in trainer.model.parameters():
            weight += 0.002 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return trainer, inputs


def own(inputs: dict[str, Any]) -> torch.Tensor:
    return (inputs["completion_mask"] * inputs["tool_mask"]).bool()


def by_length(inputs: dict[str, Any]) -> torch.Tensor:
    """The order in which dialogues go through the model."""
    return inputs["completion_mask"].sum(1).argsort()  # their prompts are of one length


def gradients(trainer: Any, inputs: dict[str, Any], call: Callable[..., Any] | None = None) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    trainer._compute_loss(call or trainer.model, inputs).backward()
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def test_where_a_token_is_not_its_own_the_loss_has_no_gradient(made: tuple[Any, dict[str, Any]]):
    trainer, inputs = made
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hook = trainer.model.model.norm.register_forward_hook(keep)  # logits are a linear map of this, position by position
    gradients(trainer, inputs)
    hook.remove()
    (hidden,) = seen
    assert hidden.grad is not None
    predicting = hidden.grad[:, inputs["prompt_ids"].shape[1] - 1 : -1]
    touched, mine = (predicting != 0).any(-1), own(inputs)[by_length(inputs)]
    assert not touched[~mine].any()
    assert touched[mine].float().mean() > 0.9  # a token that was certain has none
    assert not hidden.grad[:, : inputs["prompt_ids"].shape[1] - 1].any()
    assert not hidden.grad[:, -1].any()


def test_the_references_passes_are_as_small_as_the_micro_batch(made: tuple[Any, dict[str, Any]]):
    trainer, inputs = made
    rows: list[int] = []

    def counted(*, input_ids: torch.Tensor, **others: Any) -> Any:
        rows.append(len(input_ids))
        return trainer.model(input_ids=input_ids, **others)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    getattr(trainer, PASSES)(counted, ids, mask, inputs["completion_ids"].shape[1], batch_size=1)
    assert rows == [1, 1, 1, 1]


def test_what_balances_experts_is_learnt_from(tmp_path: Path):
    """TRL's passes return it beside what is ours, for models with experts only."""
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
def test_without_padding_the_gradient_is_the_same(
    made: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, batch: int
):
    trainer, inputs = made
    pad = torch.nn.functional.pad
    for name in ("prompt_ids", "prompt_mask"):  # as if a longer problem stood in the batch
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


def test_what_the_partner_said_as_a_label_changes_nothing(made: tuple[Any, dict[str, Any]]):
    trainer, inputs = made
    expected = gradients(trainer, inputs)
    mine = own(inputs)[by_length(inputs)]

    def relabelled(*, labels: torch.Tensor, **others: Any) -> Any:
        """The model, with other labels where its partner spoke; its inputs stay."""
        changed, width = labels.clone(), mine.shape[1]
        part = changed[:, -width:]
        part[~mine & (part != -100)] = 11
        assert not torch.equal(changed, labels)
        return trainer.model(labels=changed, **others)

    found = gradients(trainer, inputs, relabelled)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_the_gradient_is_that_of_finite_differences(made: tuple[Any, dict[str, Any]]):
    trainer, inputs = made
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        old, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, own(inputs).shape[1])
    inputs |= {"old_per_token_logps": old + 0.05}  # a ratio that is not 1, and not clipped
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


def test_rewards_are_compared_within_a_problem_and_logged_one_by_one(made: tuple[Any, dict[str, Any]]):
    trainer, inputs = made
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
    write_weights(model, AutoTokenizer.from_pretrained(TINY_MODEL), folder, [5, 6, 7])
    return model, folder


def test_weights_arrive_whole_with_their_proof(written: tuple[Any, Path]):
    model, folder = written
    check(model, folder)
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["token_ids"] == [5, 6, 7]
    assert proof["log_probs"] == pytest.approx(log_probs_of(model, [5, 6, 7]))
    assert Checkpoint.open(folder).tensor_sizes == MODEL.tensor_sizes


def test_stale_weights_are_found(written: tuple[Any, Path]):
    model, folder = written
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    with pytest.raises(StaleWeights, match="is not what was trained"):
        check(model, folder)


def test_weights_that_the_disk_took_otherwise_are_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    save = type(model).save_pretrained

    def lose_the_end(self: Any, folder: Path, **others: Any) -> None:
        save(self, folder, **others)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    monkeypatch.setattr(type(model), "save_pretrained", lose_the_end)
    with pytest.raises(StaleWeights, match="cannot be read"):
        write_weights(model, AutoTokenizer.from_pretrained(TINY_MODEL), tmp_path / "weights" / "7", [5, 6, 7])


def test_half_written_weights_are_found(written: tuple[Any, Path]):
    model, folder = written
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StaleWeights, match="cannot be read"):
        check(model, folder)


def test_missing_weights_are_found(written: tuple[Any, Path]):
    model, folder = written
    (folder / "model.safetensors").unlink()
    with pytest.raises(StaleWeights, match="is missing"):
        check(model, folder)


def test_adapters_are_merged_on_their_way_to_the_server_and_nowhere_else(tmp_path: Path):
    plain = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    model: Any = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += 0.01 * ("lora_B" in name)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    folder = tmp_path / "weights" / "7"
    folder.parent.mkdir()
    write_weights(model, AutoTokenizer.from_pretrained(TINY_MODEL), folder, [5, 6, 7])
    assert Checkpoint.open(folder).tensor_sizes == MODEL.tensor_sizes
    served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    proof = json.loads((folder / "proof.json").read_text())
    assert log_probs_of(served, [5, 6, 7]) == pytest.approx(proof["log_probs"], abs=1e-5)
    assert log_probs_of(model.get_base_model(), [5, 6, 7]) == pytest.approx(proof["log_probs"], abs=1e-5)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)


LUCK = random.Random(5)


def speak(model: Checkpoint, request: Request, number: int) -> Completion:
    """Long thinks of a number, Short answers it, sometimes after a question."""
    if model.decode(request.prompt_ids).endswith("<think>"):
        said = f"\nIt is {LUCK.choice('789')}.{' Wait.' * LUCK.randrange(4)}\n</think>"
    else:
        said = LUCK.choice(["\nSo far 7.\n</rethink>", "\nIt is \\boxed{7}.\n</answer>", "\n\\boxed{8}\n</answer>"])
    return Completion(MODEL.encode(said + "<|endoftext|>"), True)


def problems(folder: Path) -> None:
    rows = [Problem(id=f"p{n}", prompt=(TextPart(text=f"Ann has {n}."),), answer="7") for n in range(6)]
    pq.write_table(pa.Table.from_pylist([row.model_dump(mode="json") for row in rows]), folder / "rows.parquet")


def played(
    order: RlJob,
    url: str,
    script: Callable[..., Completion] = speak,
    make: Callable[..., ScriptedEngine] = ScriptedEngine,
) -> int:
    """Completions that the engines drew."""
    engines = [make(script) for _ in range(2 if order.partner else 1)]
    store, verifier = RolloutStore(url), Verifier()
    try:
        reinforce(order, engines, store, verifier)
    finally:
        store.close()
        verifier.close()
    return sum(engine.completions for engine in engines)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_round_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        problems(folder)
    url = f"sqlite:///{tmp_path / 'store'}"
    drawn = played(job(whole, max_steps=5), url)
    told = [json.loads(line) for line in (whole / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if "loss" in line] == [1, 2, 3, 4, 5]
    assert sum(line["generated_tokens"] for line in told if "loss" in line) > 0
    assert {"correctness", "format", "length", "dialogue_tokens", "seconds_sync"} <= told[0].keys()

    def die(self: Any, *arguments: Any) -> None:
        note(self, *arguments)
        if arguments[0] == 4:  # six problems, two a step: in the second epoch
            raise KeyboardInterrupt

    note = RolloutFunction._log_step
    monkeypatch.setattr(RolloutFunction, "_log_step", die)
    with pytest.raises(KeyboardInterrupt):
        played(job(cut, max_steps=5), url)
    monkeypatch.undo()
    assert played(job(cut, max_steps=5), url) == 0  # every dialogue was stored: weights are bit for bit the same
    assert drawn > 0
    again = [json.loads(line) for line in (cut / "progress.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in again if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]
    found = weights_of(cut / "out")
    assert all(torch.equal(found[name], weight) for name, weight in weights_of(whole / "out").items())
    assert any(not torch.equal(found[name], weight) for name, weight in weights_of(TINY_MODEL).items())
    assert len(json.loads((cut / "work" / "course.json").read_text())) == 5
    assert len(list((cut / "work" / "weights").iterdir())) <= 2  # the best and the last


def test_no_problem_comes_twice_in_a_step_and_all_come_equally_often(tmp_path: Path):
    order = problem_order(list("abcdefg"), job(tmp_path, max_steps=9))  # two a step: one of seven waits in each epoch
    steps = [order[at : at + 2] for at in range(0, 18, 2)]
    assert len(steps) == 9
    assert all(len(set(step)) == 2 for step in steps)
    for epoch in (order[:6], order[6:12], order[12:]):
        assert len(set(epoch)) == 6
    assert order != problem_order(list("abcdefg"), job(tmp_path, max_steps=9).model_copy(update={"seed": 1}))
    with pytest.raises(TooFewProblems, match="1 problems are left"):
        problem_order(["a"], job(tmp_path))


def test_nobody_says_the_same_again_when_a_problem_comes_again(tmp_path: Path):
    problems(tmp_path)
    played(job(tmp_path, max_steps=7), f"sqlite:///{tmp_path / 'store'}")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["reused_completions"] for line in lines if "loss" in line] == [0] * 7


def test_a_model_can_be_reinforced_alone(tmp_path: Path):
    problems(tmp_path)

    def think(model: Checkpoint, request: Request, number: int) -> Completion:
        said = f"It is 7.{' Wait.' * (number % 3)}\n</think>\nThe answer is \\boxed{{{number % 2 + 6}}}."
        return Completion(MODEL.encode(said + "<|endoftext|>"), True)

    order = job(tmp_path, max_steps=1).model_copy(update={"trains": None, "partner": None, "protocol": None})
    assert played(order, f"sqlite:///{tmp_path / 'store'}", think) == 4
    line = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[0])
    assert (line["correctness"], line["format"]) == (0.5, 1.0)


class Picky(ScriptedEngine):
    """Serves only the first of a step's problems."""

    served: tuple[int, ...] = ()

    def serve(self, model: Checkpoint, ticket: int, request: Request) -> Finished | Refused:
        self.served = self.served or request.prompt_ids
        if request.prompt_ids != self.served:
            return Refused(ticket, "no reply", Failure.TIMED_OUT)
        return super().serve(model, ticket, request)


def alone(folder: Path, **rl: Any) -> RlJob:
    return job(folder, max_steps=1, **rl).model_copy(update={"trains": None, "partner": None, "protocol": None})


def test_of_a_problem_without_dialogues_nothing_is_learnt(tmp_path: Path):
    problems(tmp_path)
    said = MODEL.encode("It is 7.\n</think>\nThe answer is \\boxed{7}.<|endoftext|>")
    url = f"sqlite:///{tmp_path / 'store'}"
    assert played(alone(tmp_path, beta=0.0), url, lambda *_: Completion(said, True), Picky) == 2
    (line, *_) = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert line["failed: timed-out"] == 1
    assert (line["correctness"], line["dialogue_tokens"]) == (1.0, len(said))  # of those that there are
    prompt = len(MODEL.prompt_ids(Problem(id="p", prompt=(TextPart(text="Ann has 0."),), answer="7")))
    lengths = [prompt + len(said)] * 2 + [prompt + 1] * 2
    assert line["training_flops"] == pytest.approx(MODEL.shape.training_flops(lengths, is_recomputed=recomputes()))
    found = weights_of(tmp_path / "out")  # its two dialogues are alike, so they have no advantage either
    assert all(torch.equal(found[name], weight.float()) for name, weight in weights_of(TINY_MODEL).items())


def test_a_step_without_any_dialogue_ends_the_round(tmp_path: Path):
    class Closed(Picky):
        served = (-1,)

    problems(tmp_path)
    with pytest.raises(TooManyFailed, match="dialogues: 2 of 2 failed"):
        played(alone(tmp_path), f"sqlite:///{tmp_path / 'store'}", make=Closed)


def test_a_collapse_ends_the_round_and_names_the_best_weights(tmp_path: Path):
    problems(tmp_path)
    seen: list[str] = []

    def chatter(model: Checkpoint, request: Request, number: int) -> Completion:
        """Long gets longer with each set of weights."""
        if model.decode(request.prompt_ids).endswith("<answer>"):
            seen.extend({model.fingerprint} - set(seen))
            said = f"\n{'Hm. ' * (30 * len(seen) ** 2)}\\boxed{{7}}\n</answer>"
        else:
            said = "\nIt is 7.\n</think>"
        return Completion(MODEL.encode(said + "<|endoftext|>"), True)

    order = job(tmp_path, max_steps=9, collapse_limits=CollapseLimits(max_tokens=1.5))
    with pytest.raises(Collapsed, match="collapsed in step 1: dialogues went from") as caught:
        played(order, f"sqlite:///{tmp_path / 'store'}", chatter)
    # Step 1 was as right as step 0, and it is what collapsed.
    assert (order.work / "best").read_text() == str(TINY_MODEL)
    assert str(TINY_MODEL) in str(caught.value)


def test_what_ends_a_round_is_told_to_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def collapse(order: RlJob) -> None:
        raise Collapsed("it did")

    monkeypatch.setattr("models.training.grpo.main", collapse)
    with pytest.raises(Collapsed):
        run(job(tmp_path))
    assert (tmp_path / "exit_reason").read_text() == "given-up\nit did"
