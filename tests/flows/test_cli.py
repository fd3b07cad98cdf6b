import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from models.inference.engine import Completion
from models.inference.rollout_store import Purpose, RolloutStore, StoredCompletion
from reasoning.token_ids import TokenIds
from tests.models.fakes import fake_checkpoint

TWO_FILES = ", ".join(f"{{type='file', path='{name}', most_bad=0.1}}" for name in "ab")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "dto", "--set", "sampling.sample=2"], "error: tiny.toml: sampling.sample: unknown setting"),
        (["run", "dto", "--preset", "none"], "error: unknown preset 'none' for dto; known: "),
        (["plan", "dto", "--preset", "none"], "error: unknown preset 'none' for dto; known: "),
        (["store", "--url", "sqlite:///none.sqlite", "stats"], "error: sqlite:///none.sqlite: no such store"),
        (["fingerprint", "nowhere"], "error: nowhere: no such folder; name one"),
        (["store", "gc"], "error: the following arguments are required: --days; see python -m flows store gc --help"),
        (["run", "nothing"], "error: argument PIPELINE: invalid choice: 'nothing'"),
        (["settings", "dto", "egnine"], "error: no setting 'egnine'; known: "),
        (["report", "runs/latest", "--format", "xls"], "error: argument --format: invalid choice: 'xls'"),
    ],
)
def test_a_users_mistake_ends_with_one_clear_line(arguments: list[str], words: str):
    run = subprocess.run([sys.executable, "-m", "flows", *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(words)
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["settings", "claims", "seeds"], "the pipeline claims is called multi-seed now"),
        (["settings", "dto", "--set", "engine.context=3000"], "the setting context is called max_model_len now"),
        (["settings", "dto", "--set", f"decontamination.against=[{TWO_FILES}]"], "the setting most_bad is called "),
    ],
)
def test_an_old_name_is_told_once_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], warning: str):
    assert main(arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {warning}")
    assert line.endswith("; the old name will be an error in the next version")


def test_settings_are_listed_with_value_and_origin(capsys: pytest.CaptureFixture[str]):
    assert main(["settings", "dto", "training", "--set", "training.cpo_alpha=0.5"]) == 0
    told = capsys.readouterr().out
    rows = {cells[0]: cells for line in told.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:]]) > 5}
    assert rows["training.cpo_alpha"][1:5] == ["0.5", "number, ≥ 0", "0.0", "--set"]
    assert rows["training.learning_rate"][4] == "preset tiny"
    assert rows["training.lora.r"][4] == "with training.lora given"
    assert not any(name.startswith("engine") for name in rows)


def test_a_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]):
    assert main(["settings", "dto", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["pipeline"]["const"] == "dto"


def test_presets_are_listed_with_their_comments(capsys: pytest.CaptureFixture[str]):
    assert main(["presets"]) == 0
    told = capsys.readouterr().out
    assert "paper-r1-1.5b" in told
    assert "DTO on the bundled tiny model" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("brevity fin", ["fingerprint", "find-overlap"]),
        ("brevity run mu", ["multi-seed"]),
        ("brevity run dto --preset paper-r", ["paper-r1-1.5b"]),
        ("brevity run dto --set engine.max_m", ["engine.max_model_len="]),
        ("brevity report runs --format p", ["parquet"]),
    ],
)
def test_a_shell_completes_commands_presets_and_settings(tmp_path: Path, line: str, words: list[str]):
    told = tmp_path / "told"
    shell = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    program = "import sys; sys.argv[0] = 'brevity'; from flows.cli import main; main()"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **shell}, check=True)
    assert [word.rstrip(" ") for word in told.read_text().split("\n")] == words


def test_a_fingerprint_is_that_of_the_checkpoint_and_its_arithmetic(tmp_path: Path):
    model = fake_checkpoint(tmp_path)

    def printed(*more: str) -> str:
        command = [sys.executable, "-m", "flows", "fingerprint", str(tmp_path), *more]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert printed() == model.fingerprint
    assert printed("--dtype", "bfloat16") != model.fingerprint


def test_a_store_is_looked_after(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store'}"
    model = fake_checkpoint(tmp_path / "model")
    RolloutStore(url).commit(
        [StoredCompletion(b"k", n, model, Purpose.PROBE, Completion(TokenIds((1, 2)), True)) for n in (0, 2)]
    )

    def store(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows", "store", "--url", url, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    assert f"{model.fingerprint} │ probe   │ 2 " in store("stats").stdout
    faulty = store("verify")
    assert (faulty.returncode, "2 samples, the last is number 2" in faulty.stderr) == (2, True)
    assert store("gc", "--days", "1").stdout == "0 completions removed\n"
    assert store("gc", "--days", "0", "--keep", model.fingerprint).stdout == "0 completions removed\n"
    assert store("gc", "--days", "0").stdout == "2 completions removed\n"
    assert store("verify").returncode == 0
