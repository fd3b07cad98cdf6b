import subprocess
import sys
from pathlib import Path

import pytest

from models.inference.engine import Completion
from models.inference.rollout_store import Purpose, RolloutStore, StoredCompletion
from tests.models.fakes import fake_checkpoint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "dto", "--set", "sampling.sample=2"], "error: tiny.toml: sampling.sample: unknown setting"),
        (["run", "dto", "--preset", "none"], "error: unknown preset 'none' for dto; known: "),
        (["store", "--url", "sqlite:///none.sqlite", "stats"], "error: sqlite:///none.sqlite: no such store"),
        (["fingerprint", "nowhere"], "nowhere: no such folder; name one"),
        (["store", "gc"], "the following arguments are required: --days"),
        (["run", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_a_users_mistake_ends_with_one_clear_line(arguments: list[str], words: str):
    run = subprocess.run([sys.executable, "-m", "flows", *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr


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
        [StoredCompletion(b"k", n, model, Purpose.PROBE, Completion((1, 2), True)) for n in (0, 2)]
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
