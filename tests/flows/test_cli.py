import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "dto", "--set", "sampling.sample=2"], "error: tiny.toml: sampling.sample: unknown setting"),
        (["run", "dto", "--preset", "none"], "error: unknown preset 'none' for dto; known: "),
        (["run", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_a_users_mistake_ends_with_one_clear_line(arguments: list[str], words: str):
    run = subprocess.run([sys.executable, "-m", "flows", *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
