"""`report RUN --format …`: what it prints and writes."""

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.reports.layout import report_tables, strip_control_chars
from tasks.reports.show_report import FORMATS, ReportError, load_report, show_report
from tests.tasks.reports.reports import report


def finite(value: Any) -> Any:
    """As `write_report` writes NaN and infinite bounds."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(finite(report()), allow_nan=False))
    return tmp_path


def test_the_terminal_gets_every_table(run: Path, capsys: pytest.CaptureFixture[str]):
    show_report(run, "table")
    shown = capsys.readouterr().out
    assert "Warning: a warning" in shown
    for title in ("Result", "Pass@1, % (mean tokens)", "Accuracy by subject", "Grades", "Ledger", "Engine"):
        assert title in shown
    assert "[red]4" in shown  # no markup


def test_the_tables_by_hand(run: Path):
    tables = report_tables(load_report(run))
    base, dto, sft = tables["Result"].to_dict("records")
    assert (base["accuracy %"].split()[0], base["tokens"], base["tokens ÷ base"]) == ("50.0", "26.7", "")
    assert sft["tokens ÷ base"].startswith("0.875 [")  # (10 + 20 + 40) / (20 + 20 + 40)
    assert (dto["build TFLOPs"], sft["build TFLOPs"]) == ("2.50", "4.50")
    assert dto["break-even queries"] == "not significant"
    assert "failed %" not in tables["Result"]
    assert tables["Pass@1, % (mean tokens)"].to_dict("records") == [
        {"model": "base", "main": "50.0 (27)", "far": "0.0 (30)"},
        {"model": "dto", "main": "83.3 (12)", "far": "100.0 (20)"},
        {"model": "sft", "main": "50.0 (23)", "far": ""},
    ]
    assert tables["Accuracy by subject, % (mean tokens)"].to_dict("records") == [
        {"subject": "algebra", "problems": "1", "base": "50.0 (20)", "dto": "50.0 (5)", "sft": "50.0 (10)"},
        {"subject": "geometry", "problems": "2", "base": "50.0 (30)", "dto": "100.0 (15)", "sft": "50.0 (30)"},
    ]
    (engine,) = tables["Engine"].to_dict("records")
    assert (engine["÷ naive"], engine["÷ floor"]) == ("0.250", "2.000")
    # 60 prompt tokens computed for the half of the rollouts that was drawn here: 60 / 300 and 60 / 30
    assert (engine["prompt ÷ naive"], engine["prompt ÷ floor"], engine["busy %"]) == ("0.200", "2.000", "75.0")
    ledger = tables["Ledger"].to_dict("records")[0]
    assert (ledger["dropped"], ledger["counts"], ledger["cached"]) == ("too-long 1", "pairs 2", "yes")


def test_markdown_has_a_table_under_each_heading(run: Path, capsys: pytest.CaptureFixture[str]):
    show_report(run, "md")
    text = capsys.readouterr().out
    assert text.startswith("# Report of dto tiny\n\n**Warning:** a warning\n\n## Result\n\n| model | role |")
    assert "## Grades\n\n| model | a\\|b |\n| --- | --- |\n| dto | [red]4 |\n| sft |  |\n" in text


def test_csv_has_all_figures_of_each_model(run: Path, capsys: pytest.CaptureFixture[str]):
    show_report(run, "csv")
    frame = pd.read_csv(StringIO(capsys.readouterr().out)).set_index(["benchmark", "model"])
    assert list(frame.index) == [("main", "base"), ("main", "dto"), ("main", "sft"), ("far", "base"), ("far", "dto")]
    assert frame["tokens_ratio"]["main", "dto"] == pytest.approx(35 / 80)
    assert math.isnan(frame["tokens_ratio"]["main", "base"])
    low, high = (frame[f"accuracy_delta_{end}"]["main", "dto"] for end in ("low", "high"))
    assert low + high == pytest.approx(2 / 3)


def test_parquet_files_are_written_beside_the_report(run: Path, capsys: pytest.CaptureFixture[str]):
    show_report(run, "parquet")
    names = ["models", "comparisons", "vs_method", "by_level", "by_subject", "by_seed", "ledger"]
    assert capsys.readouterr().out.split() == [str(run / f"{name}.parquet") for name in names]
    frames = {name: pd.read_parquet(run / f"{name}.parquet") for name in names}
    assert [len(frames[name]) for name in names] == [5, 3, 1, 8, 6, 6, 2]
    by_level = frames["by_level"]
    assert by_level["level"].tolist() == [1, 2, 1, 2, 1, 2, 9, 9]
    by_seed = frames["by_seed"].set_index(["seed", "model"])
    assert by_seed["mean_tokens"][1, "dto"] == 12.5
    assert by_seed["build_flops"][1, "dto"] == 3e12
    assert json.loads(frames["ledger"]["dropped"][0]) == {"too-long": 1}
    assert frames["ledger"]["rollouts"].tolist()[1] == 8


def test_a_report_under_earlier_names_is_read(run: Path, capsys: pytest.CaptureFixture[str]):
    show_report(run, "md")
    text = (run / "report.json").read_text()
    for new, old in (
        ("vs_method", "beside_method"),
        ("by_base_correctness", "by_original"),
        ("tables", "notes"),
        ("cost_bounds", "bill"),
        ("billed_to", "payee"),
    ):
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    earlier = json.loads(text)
    for model in (model for found in (earlier, earlier["others"]["far"]) for model in found["models"]):
        del model["by_subject"]
    (run / "report.json").write_text(json.dumps(earlier))
    now = capsys.readouterr().out
    show_report(run, "md")
    before = capsys.readouterr().out
    start, end = now.index("## Accuracy by subject"), now.index("## Grades")
    assert before == now[:start] + now[end:]


def test_the_marker_pipelines_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    openers = [
        {"text": "Wait", "is_marker": True, "count": 3, "traces": 2, "position": 0.25},
        {"text": "Hmm", "is_marker": True, "count": 0, "traces": 0, "position": None},
    ]
    content = {
        "pipeline": "markers",
        "preset": "tiny",
        "traces": 4,
        "sentence_openers": openers,
        "ledger": [ledger_of(report())],
    }
    (tmp_path / "report.json").write_text(json.dumps(content))
    show_report(tmp_path, "md")
    text = capsys.readouterr().out
    assert "| Wait | yes | 3 | 50.0 | 0.25 |\n| Hmm | yes | 0 | 0.0 |  |\n" in text
    show_report(tmp_path, "parquet")
    assert pd.read_parquet(tmp_path / "sentence_openers.parquet")["count"].tolist() == [3, 0]


def ledger_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["ledger"][0]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"pipeline": "dto", "benchmark": "main", "others": {}}'])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_report_is_one_line(tmp_path: Path, content: str, format: str):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ReportError, match=r"^[^\n]+report\.json[^\n]+$"):
        show_report(tmp_path, format)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("run", ["missing", "."])
def test_a_folder_that_is_no_finished_run_is_one_line(tmp_path: Path, run: str):
    with pytest.raises(ReportError, match=r"no report\.json; name the folder of a finished run"):
        show_report(tmp_path / run, "table")


def test_an_unknown_format_is_one_line(run: Path):
    with pytest.raises(ReportError, match="none of table, md, csv, parquet"):
        show_report(run, "xlsx")


def test_control_characters_do_not_reach_the_terminal():
    assert strip_control_chars("a\x1b[31mb\r\n\tc\x9b") == "a[31mb\n\tc"
