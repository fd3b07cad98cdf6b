"""DTO with a scripted model: which steps run, and which come from the cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.dto import Dto
from conf.load import load
from flows.dto import run_dto
from flows.evaluation import UnfitReference
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from models.tiny_model import END
from reasoning.records import CrossingEstimate, OptimisedTrace, Pair, ProposedRemovals, Scan, Score, Trace, Verdict
from tasks.reports.frames import ledger_frame, records
from tasks.reports.layout import engine_table
from tasks.runtime import rows
from tasks.runtime.caching import Step
from tasks.steps import pruning
from tasks.steps.dto import build_pairs
from tests.flows.world import ScriptedRun, speak
from tests.models.chat import Answer, Chat
from tests.tasks.reports.page.pages import contents

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = (
    "problems.count=12",
    "problems.levels=[1,2,3,4]",
    "benchmark.problems.count=8",
    "benchmark.problems.levels=[1,2,3,4]",
    "sampling.samples=2",
    "benchmark.sampling.samples=2",
)
EVERY_STEP = [
    "draw-problems",
    "draw-problems",
    "drop-long-prompts",
    "drop-long-prompts",
    "find-overlap",
    "drop-problems",
    "sample-traces",
    "probe-prefixes",
    "reestimate-crossings",
    "finalize-traces",
    "prune-traces",
    "build-pairs",
    "train-simpo",
    "evaluate",
    "evaluate",
]
CURATION = EVERY_STEP[7:13]


class Run(ScriptedRun):
    def __init__(self, root: Path, *changes: str):
        super().__init__("dto", load(Dto, "tiny", (*SMALL, f"storage.root={root}", *changes)), run_dto)


@pytest.fixture(scope="module")
def first(root: Path) -> Run:
    return Run(root)


def test_a_run_takes_every_step_and_reports_it(first: Run, root: Path):
    report = first.report
    assert first.redone == EVERY_STEP
    assert [(model["name"], model["role"]) for model in report["models"]] == [("base", "base"), ("dto", "method")]
    assert (report["models"][0]["problems"], report["models"][0]["samples"]) == (8, 16)
    assert set(report["models"][0]["by_level"]) == {"1", "2", "3", "4"}
    assert report["comparisons"][0]["against"] == "base"
    assert json.loads((root / "latest" / "report.json").read_text()) == report
    assert json.loads((root / "latest" / "config.json").read_text()) == report["config"]


def test_the_page_shows_what_became_of_each_trace(first: Run):
    held = contents(first.ctx.directory.page)["problems"]
    training = {one["id"]: one for one in held if one["set"] == "training"}
    optimised, pairs = first.rows("prune-traces", OptimisedTrace), first.rows("build-pairs", Pair)
    model = first.ctx.resources.checkpoint(first.ctx.resources.model("tiny"))
    texts = {(row.problem_id, row.sample): model.decode(row.token_ids) for row in optimised}
    states = set[str]()
    for trace in first.rows("sample-traces", Trace):
        view = training[trace.problem_id]["traces"][trace.sample]
        assert "".join(piece["text"] for piece in view["pieces"] if piece["state"] != "added") == trace.text
        kept = "".join(one["text"] for one in view["pieces"] if one["state"] in ("kept", "put back", "added"))
        assert kept == texts.get((trace.problem_id, trace.sample), "")
        its_pairs = [row for row in pairs if (row.problem_id, row.sample) == (trace.problem_id, trace.sample)]
        assert len(view["texts"]) == 2 * len(its_pairs)
        states |= {piece["state"] for piece in view["pieces"]}
    assert {"kept", "cut", "added"} <= states
    answers = [one["answers"] for one in held if one["set"] == "the benchmark"]
    assert [[answer["model"] for answer in of_problem] for of_problem in answers] == [["base"] * 2 + ["dto"] * 2] * 8


def test_reference_models_further_benchmarks_and_their_samples(first: Run, root: Path, tmp_path: Path):
    assert first.report
    reference = shutil.copytree(TINY_MODEL, tmp_path / "reference")
    (reference / "generation_config.json").write_text("{}")
    run = Run(
        root,
        f"evaluation.references=['{reference}']",
        "evaluation.samples={choices=3}",
        "evaluation.budgets=[10,100]",
        "benchmark.others.choices={count=4, levels=[1,2,3,4], options=4}",
    )
    models = {entry["name"]: entry for entry in run.report["others"]["choices"]["models"]}
    assert [(name, entry["role"], entry["samples"]) for name, entry in models.items()] == [
        ("base", "base", 12),
        ("dto", "method", 12),
        (str(reference), "reference", 12),
    ]
    assert run.report["models"][2]["samples"] == 16
    assert list(models["base"]["by_budget"]) == ["10", "100"]
    assert models["base"]["by_subject"]
    assert [entry["model"] for entry in run.report["vs_method"]] == []
    assert run.redone.count("evaluate") == 4  # the reference on both, base and method on the new benchmark


def without_tags(folder: Path) -> Path:
    """A copy of the bundled model whose template and vocabulary have no thinking tags."""
    copy = Path(shutil.copytree(TINY_MODEL, folder))
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("<think>\n", "").replace("<think>", "[a]").replace("</think>", "[b]"))
    return copy


def test_a_reference_without_thinking_tags_answers_directly(root: Path, tmp_path: Path):
    reference = without_tags(tmp_path / "instruct")
    seen = list[str]()

    def says(model: Checkpoint, request: Request, number: int) -> Completion:
        prompt = model.decode(request.prompt_ids)
        if "[a]" not in prompt and "<think>" not in prompt:
            seen.append(prompt)
            return Completion(model.encode("So \\boxed{7}." + END), True)
        return speak(model, request, number)

    settings = load(Dto, "tiny", (*SMALL, f"storage.root={root}", f"evaluation.references=['{reference}']"))
    run = ScriptedRun("dto", settings, run_dto, lambda: ScriptedEngine(says))
    assert len(seen) == 8 * 2
    (entry,) = [model for model in run.report["models"] if model["role"] == "reference"]
    assert entry["truncated"] == 0
    scores = run.rows("evaluate", Score, which=2)
    assert {row.verdict for row in scores} <= {Verdict.RIGHT, Verdict.WRONG}  # an answer each
    assert any("has no thinking tags" in warning for warning in run.report["warnings"])


def test_a_reference_with_too_short_a_context_ends_the_run_at_once(root: Path, tmp_path: Path):
    reference = Path(shutil.copytree(TINY_MODEL, tmp_path / "short"))
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    with pytest.raises(UnfitReference, match=r"holds 512 tokens .* fewer than engine\.max_model_len \(2048\); lower"):
        Run(root, f"evaluation.references=['{reference}']")


def test_the_ledger_accounts_for_every_row(first: Run):
    lines = {line["stage"]: line for line in first.report["ledger"]}
    assert (lines["sample-traces"]["rows_in"], lines["sample-traces"]["rows_out"]) == (12, 24)
    finalize = lines["finalize-traces"]
    assert finalize["rows_in"] == finalize["rows_out"] + sum(finalize["dropped"].values())
    assert lines["sample-traces"]["generated_tokens"] > 0
    assert lines["train-simpo"]["rows_in"] == lines["build-pairs"]["rows_out"]


def test_an_unchanged_run_starts_no_engine(first: Run, root: Path):
    again = Run(root)
    assert again.redone == []
    assert again.engines == []
    assert again.report["models"] == first.report["models"]


@pytest.mark.parametrize(
    ("change", "redone", "calls"),
    [
        # Only dependent steps run again; completions in the store are not sampled again.
        ("training.beta=1.0", ["train-simpo", "evaluate"], 16),
        ("training.per_device_train_batch_size=8", [], 0),
        ("engine.max_num_seqs=7", [], 0),
        ("pairing.rejected='longest'", ["build-pairs", "train-simpo", "evaluate"], 16),
        ("benchmark.sampling.samples=3", ["evaluate", "evaluate"], 16),
        ("sampling.temperature=0.7", ["sample-traces", *CURATION, "evaluate"], None),
        # The same prefixes pass, so later steps come from the cache.
        ("probing.threshold=0.6", ["probe-prefixes", "reestimate-crossings", "prune-traces"], None),
        # A shorter text allows longer prompts, but no problem here is near the limit.
        ("finalizing.closing_text='So the answer is'", ["drop-long-prompts"] * 2 + [*CURATION[2:], "evaluate"], None),
        ("pruning.type=none", ["build-pairs", "train-simpo", "evaluate"], 16),
    ],
)
def test_a_change_redoes_only_what_depends_on_it(
    first: Run, root: Path, change: str, redone: list[str], calls: int | None
):
    run = Run(root, change)
    assert run.redone == redone
    if calls is not None:
        assert run.completions == calls


def test_rows_do_not_depend_on_the_size_of_the_groups(first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows in memory at a time, and traces pruned together."""
    monkeypatch.setattr(rows, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(pruning, "PRUNED_TOGETHER", 5)
    run = Run(tmp_path)
    for step, kind in (("sample-traces", Trace), ("probe-prefixes", Scan), ("prune-traces", OptimisedTrace)):
        assert run.rows(step, kind) == first.rows(step, kind)
        counts = [one.made(step).count for one in (run, first)]
        assert [count and count.counts for count in counts] == [count and count.counts for count in counts[::-1]]
    assert run.rows("build-pairs", Pair) == first.rows("build-pairs", Pair)


def test_more_problems_sample_only_the_new_ones(first: Run, root: Path):
    run = Run(root, "problems.count=14")
    lines = {line["stage"]: line for line in run.report["ledger"]}
    assert lines["sample-traces"]["reused_completions"] == 24
    assert lines["sample-traces"]["rows_out"] == 28


def test_every_result_can_be_traced_to_its_recipe(first: Run, root: Path):
    manifests = [json.loads(path.read_text()) for path in (root / "manifests").glob("*.json")]
    known = {(manifest["artifact"]["digest"], manifest["recipe"]["step"]) for manifest in manifests}
    assert all((line["digest"], line["stage"]) in known for line in first.report["ledger"])


def test_another_model_redoes_everything_except_loading_problems(first: Run, root: Path, tmp_path: Path):
    shutil.copytree(TINY_MODEL, tmp_path / "other")
    config = json.loads((TINY_MODEL / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"of": "another"}))
    run = Run(root, f"model={tmp_path / 'other'}")
    assert run.redone == ["drop-long-prompts", "drop-long-prompts", "sample-traces", *CURATION, "evaluate", "evaluate"]


def test_another_version_of_a_method_redoes_what_depends_on_it(first: Run, root: Path, monkeypatch: pytest.MonkeyPatch):
    newer = Step(build_pairs.body, "data")
    newer.version = "another"
    monkeypatch.setattr("flows.dto.build_pairs", newer)
    run = Run(root)
    # The new version makes the same pairs, so no later step runs again.
    assert run.redone == ["build-pairs"]


def test_controls_are_evaluated_on_the_same_problems(first: Run, root: Path):
    run = Run(
        root,
        'controls.trained=["shortest-longest", "sft", "paper-pairs", "unpruned", "probe-pruned"]',
        "controls.early_stop=true",
        "controls.fast_prompt=Be brief.",
        "benchmark.unseen.levels=[9]",
        "benchmark.unseen.count=2",
    )
    assert [model["name"] for model in run.report["models"]] == [
        "base",
        "dto",
        "shortest-longest",
        "sft",
        "paper-pairs",
        "unpruned",
        "probe-pruned",
        "early-stop",
        "fast-prompt",
    ]
    assert {model["samples"] for model in run.report["models"]} == {16}
    assert [model["role"] for model in run.report["models"][2:]] == ["control"] * 7
    assert [model["problems"] for model in run.report["others"]["levels that no training has seen"]["models"]] == [
        2
    ] * 7
    again = Run(root, 'controls.trained=["sft"]')
    assert again.redone == []


def test_other_figures_of_the_report(first: Run):
    report = first.report
    assert report["by_seed"] == []
    assert report["comparisons"][0]["break_even"]["build_flops"] == pytest.approx(
        sum(
            line["flops"] + line["reused_flops"]
            for line in report["ledger"]
            if line["stage"] not in ("evaluate", "reestimate-crossings")
        )
    )
    assert set(report["comparisons"][0]["by_base_correctness"]) == {
        "attention_flops_right",
        "attention_flops_wrong",
        "wrong_to_right",
        "wrong_to_right_of_base",
    }
    counted = {line["stage"]: line["counts"] for line in report["ledger"]}
    assert "false crossings" in counted["reestimate-crossings"]
    assert counted["prune-traces"]["tokens after"] <= counted["prune-traces"]["tokens before"]


def test_probing_cost_is_reported_with_its_bounds(first: Run):
    (line,) = [
        line
        for line in records(engine_table(ledger_frame(first.report["ledger"])))
        if line["stage"] == "probe-prefixes"
    ]
    (probed,) = [line for line in first.report["ledger"] if line["stage"] == "probe-prefixes"]
    bounds = probed["cost_bounds"]
    # The scripted model always answers alike: 5 right rollouts of 8 pass a prefix, 4 wrong ones fail it.
    assert bounds["rollouts"] == bounds["rollouts_floor"] < 5 / 8 * bounds["rollouts_naive"]
    assert line["÷ floor"] == "1.000"
    assert line["÷ naive"] == f"{bounds['rollouts'] / bounds['rollouts_naive']:.3f}"
    # The scripted engine has no prefix cache: every rollout computes its whole prompt.
    assert probed["cached_prompt_tokens"] == 0
    assert probed["prompt_tokens"] < bounds["prefill_naive"]


def test_a_binary_search_is_audited_on_a_share_of_the_traces(first: Run, root: Path):
    binary = Run(root, "probing.search.type=binary", "probing.search.audited=1")
    assert binary.redone[0] == "probe-prefixes"
    (line,) = [line for line in binary.report["ledger"] if line["stage"] == "probe-prefixes"]
    assert line["counts"]["audited"] == line["rows_out"] > 0
    # The scripted conclusions change from right to wrong and back, so binary search and scan differ.
    assert 0 < line["counts"]["audits with another crossing"] < line["rows_out"]
    none = Run(root, "probing.search.type=binary", "probing.search.audited=0")
    (line,) = [line for line in none.report["ledger"] if line["stage"] == "probe-prefixes"]
    assert line["counts"] == {}
    assert line["cost_bounds"]["rollouts"] < line["cost_bounds"]["rollouts_naive"]


def test_crossings_are_estimated_again_on_a_share_of_the_traces(first: Run, root: Path):
    names = [{(row.problem_id, row.sample) for row in first.rows("reestimate-crossings", CrossingEstimate)}]
    for share in (0.5, 0.2, 0.0):
        run = Run(root, f"reestimated={share}")
        assert run.redone == ["reestimate-crossings"]
        (line,) = [line for line in run.report["ledger"] if line["stage"] == "reestimate-crossings"]
        assert line["rows_in"] == line["rows_out"]
        names.append({(row.problem_id, row.sample) for row in run.rows("reestimate-crossings", CrossingEstimate)})
    assert names[0] > names[1] > names[2] >= names[3] == set()


def test_an_auxiliary_model_proposes_removals(first: Run, root: Path, chat: Callable[..., Chat]):
    def propose(body: dict[str, Any], number: int) -> Answer:
        assert body["messages"][1]["content"].startswith("### problem\n")
        return Answer("I will not." if number == 2 else '{"remove": [1]}')

    server = chat(propose)
    changes = ("pruning.type=llm", f"llm.url={server.url}", "llm.model=m", "pruning.max_invalid_fraction=0.5")
    run = Run(root, *changes)
    assert run.redone[:2] == ["propose-removals", "prune-traces"]
    line = next(line for line in run.report["ledger"] if line["stage"] == "propose-removals")
    assert line["dropped"].keys() == {"no-inner-segment"}
    assert line["rows_in"] == line["rows_out"] + line["dropped"]["no-inner-segment"]
    assert len(server.asked) == line["rows_out"] + 1  # one reply was invalid and repaired
    pruned = {(row.problem_id, row.sample): row.removed for row in run.rows("prune-traces", OptimisedTrace)}
    assert set(pruned.values()) == {(), (1,)}
    proposed = {(row.problem_id, row.sample) for row in run.rows("propose-removals", ProposedRemovals)}
    assert {name for name, removed in pruned.items() if removed} <= proposed
    assert Run(root, *changes).redone == []
