"""Claims over two seeds with a scripted model."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.load import load
from conf.multi_seed import MultiSeed
from flows.multi_seed import run_multi_seed
from models.inference.scripted_engine import ScriptedEngine
from tasks.reports.multi_seed import END as END_OF
from tasks.reports.multi_seed import RESULTS, MissingMarkers
from tasks.reports.multi_seed import START as START_OF
from tasks.reports.seed_results import SeedResultError
from tasks.runtime.caching import STEPS
from tasks.runtime.context import RunContext
from tests.flows.world import pretend_training, report_of, scripted, silent_progress, speaking

START, END = START_OF.format("dto"), END_OF.format("dto")
pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = (
    "seeds=[0,1]",
    "dto.problems.count=6",
    "dto.problems.levels=[1,2,3,4]",
    "dto.benchmark.problems.count=8",
    "dto.benchmark.problems.levels=[1,2,3,4]",
    "dto.benchmark.unseen.count=2",
    "dto.benchmark.unseen.levels=[9]",
    "dto.sampling.samples=2",
    "dto.benchmark.sampling.samples=2",
    'dto.controls.trained=["unpruned", "probe-pruned", "paper-pairs", "shortest-longest", "sft"]',
)


COUPLES = (
    "seeds=[0,1]",
    "long_short.rl.problems_per_step=4",
    "long_short.problems.count=6",
    "long_short.problems.levels=[1,2,3,4]",
    "long_short.sampling.samples=2",
    "long_short.benchmark_sampling.samples=2",
    'long_short.benchmarks={"main"={count=8,levels=[1,2,3,4]}}',
    'long_short.rl.rounds=["long","short"]',
)


def claim(root: Path, *changes: str) -> dict[str, Any]:
    return claimed(load(MultiSeed, "dto", (*SMALL, f"dto.storage.root={root}", *changes)), scripted)


def claimed(settings: MultiSeed, make: Callable[[], ScriptedEngine]) -> dict[str, Any]:
    with RunContext(
        "multi-seed",
        settings.of.storage,
        settings.of.engine,
        make_engine=lambda *_: make(),
        trainer=pretend_training,
        progress=silent_progress(),
    ) as ctx:
        return report_of(run_multi_seed, ctx, settings)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_markers(tmp_path_factory.mktemp("published"))


def with_markers(folder: Path, text: str = f"before\n{START}\nold\n{END}\nafter\n") -> Path:
    """A folder whose docs/results.md can take the table."""
    (folder / RESULTS).parent.mkdir(parents=True)
    (folder / RESULTS).write_text(text)
    return folder


@pytest.fixture(scope="module")
def report(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return claim(tmp_path_factory.mktemp("root"), f"publish_dir={published}")


def test_seeds_are_pooled_and_told_apart(report: dict[str, Any]):
    names = [
        "base",
        "dto",
        "unpruned",
        "probe-pruned",
        "paper-pairs",
        "shortest-longest",
        "sft",
        "early-stop",
        "fast-prompt",
    ]
    assert report["seeds"] == [0, 1]
    assert [model["name"] for model in report["models"]] == names
    assert [(model["problems"], model["samples"]) for model in report["models"]] == [(16, 32)] * len(names)
    assert [seed["seed"] for seed in report["by_seed"]] == [0, 1]
    for index, model in enumerate(report["models"]):
        parts = [seed["models"][index] for seed in report["by_seed"]]
        assert [part["problems"] for part in parts] == [8, 8]
        assert model["accuracy"] == pytest.approx(sum(part["accuracy"] for part in parts) / 2)
    by_name = {model["name"]: model for model in report["models"]}
    assert [pair["model"] for pair in report["vs_method"]] == names[2:]
    for pair in report["vs_method"]:
        difference = by_name[pair["model"]]["accuracy"] - by_name["dto"]["accuracy"]
        assert (pair["against"], pair["accuracy_delta"]) == ("dto", pytest.approx(difference))
    assert set(report["models"][0]["by_level"]) == {"1", "2", "3", "4"}
    ((name, unseen),) = report["others"].items()
    assert name == "levels that no training has seen"
    assert [model["problems"] for model in unseen["models"]] == [4] * 7


def test_each_model_pays_for_the_steps_that_led_to_it(report: dict[str, Any]):
    flops = {pair["model"]: pair["break_even"]["build_flops"] for pair in report["comparisons"]}
    # Each seed's lines stand in the order of its steps; the first three sample, probe and finalize for all models.
    spent: dict[str, list[float]] = {}
    for line in report["ledger"]:
        spent.setdefault(line["stage"], []).append(line["flops"] + line["reused_flops"])
    sampled, finalized = sum(spent["sample-traces"]), sum(spent["probe-prefixes"] + spent["finalize-traces"])
    natural, by_probes = (sum(spent["prune-traces"][which::2]) for which in (0, 1))
    method, unpruned, probe_pruned, paper_pairs, contrast = (sum(spent["train-simpo"][which::5]) for which in range(5))
    assert {name: 2 * total for name, total in flops.items()} == pytest.approx(
        {
            "dto": sampled + finalized + natural + method,
            "unpruned": sampled + finalized + unpruned,
            "probe-pruned": sampled + finalized + by_probes + probe_pruned,
            "paper-pairs": sampled + finalized + natural + paper_pairs,
            "shortest-longest": sampled + contrast,
            "sft": sampled + finalized + natural + sum(spent["train-sft"]),
            "early-stop": 0,
            "fast-prompt": 0,
        }
    )


def test_the_file_of_results_gets_table_and_plot(report: dict[str, Any], published: Path):
    text = (published / RESULTS).read_text()
    assert text.startswith(f"before\n{START}\nSeeds 0, 1 together: 16 problems, 32 samples a model, on ")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| **dto** |" in text
    assert "(claims-dto.svg)" in text
    assert (published / "docs" / "claims-dto.svg").read_text().startswith("<?xml")
    assert sum(line.startswith("| ") for line in text.splitlines()) == (2 + 9) + (2 + 7) + (2 + 7)


FIGURES = ("seeds", "models", "comparisons", "vs_method", "others", "by_seed", "tables", "warnings")


def test_seeds_that_were_evaluated_elsewhere_are_not_run_again(report: dict[str, Any], published: Path, tmp_path: Path):
    """First only seed 0 comes from a file, then both, in storages that know nothing."""
    kept = published / "docs" / "outcomes"
    assert sorted(path.name for path in kept.iterdir()) == ["dto-seed-0.json.xz", "dto-seed-1.json.xz"]
    assert str(published.parent).encode() not in b"".join(lzma.decompress(path.read_bytes()) for path in kept.iterdir())
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "dto-seed-0.json.xz").write_bytes((kept / "dto-seed-0.json.xz").read_bytes())
    half = claim(
        tmp_path / "half", f"reuse_results_from={earlier}", f"publish_dir={with_markers(tmp_path / 'published')}"
    )
    assert half["by_seed"][0] == report["by_seed"][0]
    stages = [line["stage"] for line in report["ledger"]]
    assert [line["stage"] for line in half["ledger"]] == stages
    here = [bool(line["artifact"]) for line in half["ledger"]]
    assert here == [False] * (len(stages) // 2) + [True] * (len(stages) // 2)
    whole = claim(tmp_path / "whole", f"reuse_results_from={tmp_path / 'published' / 'docs' / 'outcomes'}")
    assert {name: whole[name] for name in FIGURES} == {name: half[name] for name in FIGURES}
    assert not (tmp_path / "whole" / "manifests").exists()


def test_what_changes_no_result_may_be_another_machines(report: dict[str, Any], published: Path, tmp_path: Path):
    kept = published / "docs" / "outcomes"
    changes = ("dto.training.per_device_train_batch_size=1", "dto.engine.max_num_seqs=8", f"reuse_results_from={kept}")
    again = claim(tmp_path / "root", *changes)
    assert {name: again[name] for name in FIGURES} == {name: report[name] for name in FIGURES}


def test_outcomes_that_other_code_made_are_read_and_said_to_be(
    report: dict[str, Any], published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(STEPS["prune-traces"], "version", "0")
    again = claim(tmp_path / "root", f"reuse_results_from={published / 'docs' / 'outcomes'}")
    assert {name: again[name] for name in FIGURES[:-1]} == {name: report[name] for name in FIGURES[:-1]}
    told = [line for line in again["warnings"] if line not in report["warnings"]]
    assert [line.partition(":")[0] for line in told] == [
        f"seed {seed} was evaluated with other code of prune-traces" for seed in (0, 1)
    ]


def test_a_folder_of_outcomes_that_is_not_there_is_no_empty_one(tmp_path: Path):
    with pytest.raises(SeedResultError, match="no such folder; correct reuse_results_from"):
        claim(tmp_path / "root", f"reuse_results_from={tmp_path / 'doc'}")


@pytest.mark.parametrize(
    ("change", "content", "told"),
    [
        ("dto.training.learning_rate=1e-6", None, "other settings (training.learning_rate); run seed 0 again"),
        ("dto.engine.max_model_len=4000", None, "other settings (engine.max_model_len); run seed 0 again"),
        ("dto.engine.dtype=bfloat16", None, "of model [0-9a-f]{12}, not of [0-9a-f]{12}; run seed 0 again"),
        ("seeds=[0]", b"", "dto-seed-0.json.xz: holds no seed result"),
        ("seeds=[0]", lzma.compress(b'{"seed": '), "dto-seed-0.json.xz: holds no seed result"),
        ("seeds=[0]", lzma.compress(b'{"seed": 0}'), "dto-seed-0.json.xz: holds no seed result"),
    ],
)
def test_outcomes_of_other_claims_are_refused_before_anything_is_run(
    report: dict[str, Any], published: Path, tmp_path: Path, change: str, content: bytes | None, told: str
):
    assert report["seeds"] == [0, 1]
    kept = (published / "docs" / "outcomes" / "dto-seed-0.json.xz").read_bytes()
    (tmp_path / "dto-seed-0.json.xz").write_bytes(kept if content is None else content)
    with pytest.raises(SeedResultError, match=told.replace("(", r"\(").replace(")", r"\)")):
        claim(tmp_path / "root", f"reuse_results_from={tmp_path}", change)
    assert not (tmp_path / "root" / "manifests").exists()


def test_model_pairs_of_all_seeds_are_pooled(tmp_path: Path):
    start, end = START_OF.format("long-short"), END_OF.format("long-short")
    with_markers(tmp_path, f"{start}\n{end}\n")
    changes = (*COUPLES, f"long_short.storage.root={tmp_path / 'root'}", f"publish_dir={tmp_path}")
    report = claimed(load(MultiSeed, "long-short", changes), speaking)
    names = ["base", "one model", "cold start", "round 1, long", "round 2, short", "early stop"]
    assert [(model["name"], model["samples"]) for model in report["models"]] == [(name, 32) for name in names]
    (note,) = (note for note in report["tables"] if note["is_pooled"])
    assert [row["pair"] for row in note["rows"]] == names[2:5]
    text = (tmp_path / RESULTS).read_text()
    assert "| **round 2, short** |" in text
    assert "Dialogues; rewards relative to cold start:\n\n| pair |" in text
    # Each pair is built by all that led to either of its models.
    pairs = {pair["model"]: pair for pair in report["comparisons"]}
    assert pairs["cold start"]["break_even"]["build_flops"] > 0
    learnt = sum(line["rows_out"] for line in report["ledger"] if line["stage"] == "build-turn-sft-rows")
    assert pairs["cold start"]["trained_on"] == learnt / 2
    # From files, without the dialogues' words, all is the same.
    changes = (
        *COUPLES,
        f"long_short.storage.root={tmp_path / 'other'}",
        f"reuse_results_from={tmp_path / 'docs' / 'outcomes'}",
    )
    again = claimed(load(MultiSeed, "long-short", changes), speaking)
    assert {name: again[name] for name in FIGURES} == {name: report[name] for name in FIGURES}
    kept = tmp_path / "docs" / "outcomes" / "long-short-seed-0.json.xz"
    assert b"</think><answer>" not in lzma.decompress(kept.read_bytes())  # as every dialogue has it


@pytest.mark.parametrize("text", [None, "nothing", f"{END}\n{START}"])
def test_a_file_of_results_without_markers_is_refused_before_anything_is_run(tmp_path: Path, text: str | None):
    if text is not None:
        with_markers(tmp_path, text)
    with pytest.raises(MissingMarkers, match="write them where the results belong"):
        claim(tmp_path / "root", f"publish_dir={tmp_path}")
    assert not (tmp_path / "root" / "manifests").exists()
