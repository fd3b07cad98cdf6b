"""`brevity plan` against scripted runs: what it lists, what it predicts, and that it changes nothing."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.load import load
from conf.long_short import LongShort
from conf.multi_seed import MultiSeed
from conf.training import Lora
from flows import plan as plan_command
from flows.cli import main
from flows.cot_distillation import run_cot_distillation
from flows.dto import run_dto
from flows.long_short import run_long_short
from flows.plan import CannotPlan, plan, print_plan
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.checkpoints.memory_estimates import adapter_size
from models.inference.devices import TooFewGpus
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from models.training.launcher import TrainerJob
from tasks.runtime.caching import Step
from tasks.runtime.planning import PlannedStep, StepState
from tasks.runtime.prediction import Certainty
from tasks.steps.dto import build_pairs
from tests.flows.world import ScriptedRun, assist, scripted, speak_turn
from tests.models.chat import Chat

pytestmark = pytest.mark.usefixtures("plain_steps")
STORIES = ("problems.levels=[1,2,3,4]", "sampling.samples=2")
ONE_SET = ("benchmark.problems.levels=[1,2,3,4]", "benchmark.sampling.samples=2")
SETS = ("benchmark_sampling.samples=2", 'benchmarks={"main"={count=8,levels=[1,2,3,4]},"far"={count=2,levels=[9]}}')


def speak_as_trained(model: Checkpoint, request: Request, number: int) -> Completion:
    """As `speak_turn`, but each model's turns differ, so that no two models have the same dialogues."""
    said = speak_turn(model, request, number)
    own = f"\nNow it is {int(model.fingerprint[:4], 16)}."
    return Completion(model.encode(own) + said.token_ids, True) if model.decode(said.token_ids)[0] == "\n" else said


class Run(ScriptedRun):
    """Its stand-in trainer makes other weights of another model, as a trainer does."""

    def train(self, job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        figures = super().train(job, folder, progress)
        config = job.output / "generation_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"from": Checkpoint.open(job.model).fingerprint}))
        return figures


@dataclass(frozen=True)
class Pipeline:
    kind: Any
    body: Callable[..., Path]
    small: tuple[str, ...]
    late: str
    """A change of a setting that late steps alone read."""
    make: Callable[[], ScriptedEngine] = scripted

    def settings(self, root: Path, *changes: str) -> Any:
        return load(self.kind, "tiny", (*STORIES, *self.small, f"storage.root={root}", *changes))

    def plan(self, root: Path, *changes: str) -> list[PlannedStep]:
        return plan(self.settings(root, *changes))

    def run(self, root: Path, *changes: str) -> Run:
        settings = self.settings(root, *changes)
        return Run(settings.pipeline, settings, self.body, self.make)


DTO = Pipeline(
    Dto,
    run_dto,
    ("problems.count=12", "benchmark.problems.count=8", *ONE_SET),
    "training.beta=1.0",
)
PIPELINES = {
    "dto": DTO,
    "cot-distillation": Pipeline(
        CotDistillation,
        run_cot_distillation,
        ("problems.count=12", "selection.max_traces=2", *SETS),
        "dpo.beta=0.2",
    ),
    "long-short": Pipeline(
        LongShort,
        run_long_short,
        (
            "problems.count=16",
            "rl.problems_per_step=8",
            "rollouts.samples=3",
            'rl.rounds=["long","short"]',
            "early_stop={}",
            *SETS,
        ),
        "rl.learning_rate=2e-4",
        lambda: ScriptedEngine(speak_as_trained),
    ),
}


def listed(steps: list[PlannedStep]) -> list[tuple[str, bool]]:
    return [(step.step, step.state is StepState.CACHED) for step in steps]


def done(run: ScriptedRun) -> list[tuple[str, bool]]:
    return [(entry.step, entry.cached) for entry in run.ctx.ledger]


def tokens(steps: list[PlannedStep]) -> float:
    return sum(step.predicted.tokens.value for step in steps if step.state is StepState.TO_RUN)


def generated(run: ScriptedRun, *names: str) -> int:
    """Tokens that a run generated, in all steps or in those of `names`."""
    counts = [entry.artifact.count for entry in run.ctx.ledger if not entry.cached and entry.step in (names or entry)]
    return sum(count.generated_tokens for count in counts if count)


def only(steps: list[PlannedStep], name: str, which: int = 0) -> PlannedStep:
    return [step for step in steps if step.step == name][which]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_plan_lists_the_steps_of_the_run_and_which_are_cached(name: str, tmp_path: Path):
    pipeline, root = PIPELINES[name], tmp_path / "root"
    root.mkdir()
    for number, changes in enumerate([(), (pipeline.late,), ("seed=1",)]):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(root, copy)
        told = pipeline.plan(copy, *changes)
        assert listed(told) == done(pipeline.run(root, *changes)), changes
    for changes in ((), (pipeline.late,), ("seed=1",)):
        assert {step.state for step in pipeline.plan(root, *changes)} == {StepState.CACHED}


def test_a_run_after_a_plan_finds_the_data_that_the_plan_read(tmp_path: Path):
    told = DTO.plan(tmp_path)
    found = [(step.step, step.state is StepState.READ) for step in told]
    assert done(DTO.run(tmp_path)) == found
    assert [step.step for step in told if step.state is StepState.READ] == [
        *["draw-problems"] * 2,
        *["drop-long-prompts"] * 2,
        "find-overlap",
        "drop-problems",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished run of DTO with 12 problems. Tests copy it."""
    root = tmp_path_factory.mktemp("finished") / "root"
    DTO.run(root)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))


def test_an_unchanged_run_costs_nothing(root: Path, capsys: pytest.CaptureFixture[str]):
    steps = DTO.plan(root)
    assert {step.state for step in steps} == {StepState.CACHED}
    assert tokens(steps) == 0
    assert [step.name for step in steps[-2:]] == ["evaluate [base, the benchmark]", "evaluate [dto, the benchmark]"]
    capsys.readouterr()
    changes = [word for change in (*STORIES, *DTO.small, f"storage.root={root}") for word in ("--set", change)]
    assert main(["plan", "dto", *changes]) == 0
    told = capsys.readouterr().out
    assert "15 cached, 0 read now, 0 to run" in told
    assert [line.split("│")[2].strip() for line in told.splitlines() if "GPU-hours" in line] == ["0.00"]


def content(root: Path) -> dict[str, str]:
    """Digests of all files, by path."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): f"{path.stat().st_mtime_ns}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in files
    }


@pytest.mark.parametrize("changes", [(), ("training.beta=1.0",), ("seed=1", "problems.count=20")])
def test_a_plan_changes_nothing_and_writes_only_data(root: Path, changes: tuple[str, ...]):
    before, folders = content(root), {path.name for path in root.iterdir()}
    read = [step for step in DTO.plan(root, *changes) if step.state is StepState.READ]
    after = content(root)
    assert {name: after[name] for name in before} == before
    new = [name for name in after if name not in before]
    assert {name.split("/")[0] for name in new} == ({"objects", "manifests"} if read else set())
    assert {name.split("/")[1] for name in new if name.startswith("objects")} <= {"problems", "matches"}
    assert {path.name for path in root.iterdir()} == folders
    with sqlite3.connect(root / "rollouts.sqlite") as database:
        assert database.execute("select count(*) from leases").fetchone() == (0,)


def test_a_plan_of_an_empty_root_makes_no_store_and_no_run_folder(tmp_path: Path):
    DTO.plan(tmp_path / "root")
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"objects", "manifests"}


def test_a_plan_cannot_start_an_engine(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(plan_command.BODIES, "dto", lambda ctx, settings: ctx.resources.engine)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="starts no engine"):
        DTO.plan(root)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pilot_predicts_a_run_with_four_times_as_many_problems(name: str, tmp_path: Path):
    pipeline = PIPELINES[name]
    pipeline.run(tmp_path, "problems.count=14")
    told = pipeline.plan(tmp_path, "problems.count=56")
    run = pipeline.run(tmp_path, "problems.count=56")
    assert tokens(told) == pytest.approx(generated(run), rel=0.2)
    for step, entry in zip(told, run.ctx.ledger, strict=True):
        assert step.predicted.rows_out.value == pytest.approx(entry.artifact.rows, rel=0.4, abs=2), step.name


def test_problems_that_were_sampled_before_cost_nothing(tmp_path: Path):
    sampling = ("sample-traces", "probe-prefixes", "reestimate-crossings", "finalize-traces", "prune-traces")
    first = DTO.run(tmp_path, "problems.count=40")
    told = {step.step: step.predicted for step in DTO.plan(tmp_path, "problems.count=44")}
    more = DTO.run(tmp_path, "problems.count=44")
    predicted, sampled = sum(told[name].tokens.value for name in sampling), generated(more, *sampling)
    assert predicted == pytest.approx(sampled, rel=0.2)
    # 4 of 44 problems are new. The first 40 took ten times as many tokens.
    assert predicted == pytest.approx(generated(first, *sampling) / 10, rel=0.01)


def test_a_result_that_comes_out_the_same_leaves_more_cached_than_the_plan_says(root: Path):
    changes = ("probing.threshold=0.6",)
    told, run = listed(DTO.plan(root, *changes)), done(DTO.run(root, *changes))
    assert [name for name, _ in told] == [name for name, _ in run]
    assert {name for name, cached in told if not cached} > {name for name, cached in run if not cached}


def test_fewer_problems_cost_no_sampling(root: Path):
    told = DTO.plan(root, "problems.count=8")
    assert only(told, "sample-traces").predicted.tokens.value == 0
    assert only(told, "prune-traces").predicted.tokens.value == 0
    assert only(told, "sample-traces").predicted.rows_out.value == 16
    run = DTO.run(root, "problems.count=8")
    assert generated(run, "sample-traces", "probe-prefixes", "finalize-traces", "prune-traces") == 0


def test_more_samples_cost_only_the_additional_ones(root: Path):
    told = DTO.plan(root, "benchmark.sampling.samples=3")
    run = DTO.run(root, "benchmark.sampling.samples=3")
    for which in (0, 1):
        predicted = only(told, "evaluate", which).predicted
        assert predicted.rows_out.value == 24
        made = run.made("evaluate", which).count
        assert made
        # One more completion of 8 problems, after two: half of what the two took.
        assert predicted.tokens.value == pytest.approx(made.generated_tokens, rel=0.2)


def why(steps: list[PlannedStep], name: str, which: int = 0) -> list[str]:
    return list(only(steps, name, which).reasons)


def test_reasons_of_a_first_run(tmp_path: Path):
    assert {reason for step in DTO.plan(tmp_path) for reason in step.reasons} == {"never made here"}


def test_reasons_name_changed_settings_and_new_inputs(root: Path):
    told = DTO.plan(root, "training.beta=1.0", "benchmark.sampling.samples=3")
    assert why(told, "build-pairs") == []
    assert why(told, "train-simpo") == ["training.beta 2.0 → 1.0"]
    assert why(told, "evaluate") == ["sampling.samples 2 → 3"]
    assert why(told, "evaluate", 1) == ["new input: model", "sampling.samples 2 → 3"]


def test_the_reason_is_the_change_from_the_most_similar_result(root: Path):
    DTO.run(root, "training.beta=1.0")
    told = DTO.plan(root, "training.beta=0.5")
    assert why(told, "train-simpo") == ["training.beta 1.0 → 0.5"]  # the newest of two
    told = DTO.plan(root, "problems.count=14")
    assert why(told, "sample-traces") == ["new input: problems"]
    assert why(told, "draw-problems", 1) == ["source.count 12 → 14"]
    assert why(told, "probe-prefixes") == ["new input: problems, traces"]


def test_changed_code_is_a_reason(root: Path, monkeypatch: pytest.MonkeyPatch):
    newer = Step(build_pairs.body, "data")
    newer.version = "another"
    monkeypatch.setattr("flows.dto.build_pairs", newer)
    told = DTO.plan(root)
    assert why(told, "build-pairs") == ["the code changed"]
    assert only(told, "build-pairs").state is StepState.READ
    # Its inputs exist, so it was computed: the pairs are the same, and the later steps are cached.
    assert {step.state for step in told if step.step != "build-pairs"} == {StepState.CACHED}


def test_a_missing_result_is_a_reason_and_its_samples_are_in_the_store(root: Path):
    (manifest,) = (root / "manifests").glob("sample-traces-*.json")
    text = manifest.read_text().replace("objects/traces/", "objects/gone/")
    manifest.write_text(text)
    told = DTO.plan(root)
    assert why(told, "sample-traces") == ["its result is missing or damaged"]
    assert only(told, "sample-traces").predicted.tokens.value == 0
    assert only(told, "sample-traces").predicted.rows_out.value == 24


def test_the_price_of_an_auxiliary_model_is_predicted_and_nothing_is_asked(
    tmp_path: Path, chat: Callable[..., Chat], capsys: pytest.CaptureFixture[str]
):
    server, pipeline = chat(assist), PIPELINES["cot-distillation"]
    more = ("rating.type=llm", "variants=[]", f"llm.url={server.url}", "llm.model=m", "llm.price_in=1.0")
    more += ("llm.price_out=2.0",)
    pipeline.run(tmp_path, *more)
    asked = len(server.asked)
    told = pipeline.plan(tmp_path, *more, "problems.count=24")
    capsys.readouterr()
    print_plan(pipeline.settings(tmp_path, *more, "problems.count=24"))
    assert "price of the auxiliary model" in capsys.readouterr().out
    assert len(server.asked) == asked
    rated = pipeline.run(tmp_path, *more, "problems.count=24").made("rate-by-llm").count
    assert rated
    paid = (rated.prompt_tokens + 2 * rated.generated_tokens) / 1e6
    assert only(told, "rate-by-llm").predicted.money.value == pytest.approx(paid, rel=0.25)
    assert only(told, "rate-by-llm").predicted.gpu_seconds.value == 0


def test_all_seeds_of_a_multi_seed_run_are_planned(root: Path):
    told = plan(MultiSeed(dto=DTO.settings(root), seeds=(0, 1)))
    assert [step.step for step in told[:15]] == [step.step for step in told[15:]]
    assert {step.state for step in told[:15]} == {StepState.CACHED}
    assert why(told[15:], "sample-traces") == ["new input: problems", "seed 0 → 1"]
    # The first seed is the pilot of the second.
    assert all(step.predicted.tokens.certainty is Certainty.ESTIMATE for step in told[15:] if step.kind == "sampling")


def test_a_model_that_is_not_here_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CannotPlan, match="`brevity check-model owner/name` downloads it"):
        DTO.plan(tmp_path / "root", "model=owner/name")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("pipeline", "gpus", "node"),
    [
        ("dto", 0, "1 replica of each model, on the CPU"),
        ("dto", 6, "6 replicas of each model, on GPUs 0, 1, 2, 3, 4, 5; [training] in 4 processes"),
        ("long-short", 2, "2 replicas of each model, on GPUs 0, 1, each GPU shared by 2 servers; [sft] in 2 processes"),
        ("long-short", 2, "[rl] on GPU 0, its servers on 1"),
    ],
)
def test_the_node_is_told_by_the_rule_of_a_run(
    pipeline: str, gpus: int, node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_plan(PIPELINES[pipeline].settings(tmp_path), gpus)
    told = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert node in " ".join(told.split())


def test_a_node_that_is_too_small_is_told_before_anything_is_read(tmp_path: Path):
    settings = DTO.settings(tmp_path, "engine.tensor_parallel_size=4", "engine.replicas=2")
    with pytest.raises(TooFewGpus, match="needs 8 GPUs for the servers, and 4 are there"):
        print_plan(settings, 4)


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        (("sft.lora.r=8", "dpo.lora.r=4"), (8, 12)),  # those of DPO are joined with those of SFT
        (("sft.lora.r=8", "dpo.lora.r=4", "dpo.lora.merge=true"), (8, None)),
        (("dpo.lora.r=4",), (None, None)),  # on weights that the run has trained
        (("sft.lora.r=8",), (8, None)),
    ],
)
def test_adapters_count_as_such_and_whole_models_as_whole(
    changes: tuple[str, ...], written: tuple[int | None, int | None], tmp_path: Path
):
    tiny = Checkpoint.open(TINY_MODEL)
    steps = {step.step: step for step in PIPELINES["cot-distillation"].plan(tmp_path, *changes)}
    for name, rank in zip(("train-sft", "train-dpo"), written, strict=True):
        parameters = adapter_size(tiny, Lora(r=rank)) if rank else sum(tiny.tensor_sizes.values())
        assert steps[name].predicted.bytes.value == 4 * parameters, name
