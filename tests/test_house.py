"""Package names resolve to this repository, and pure packages import no framework."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["flows", "tasks", "models", "reasoning", "conf"])
def test_each_package_is_from_this_repository(name: str):
    assert Path(importlib.import_module(name).__file__ or "").parent == ROOT / name


@pytest.mark.parametrize(
    "name", ["reasoning.evaluation", "reasoning.dto", "reasoning.answers.verifier", "conf.load", "flows.cache_commands"]
)
def test_algorithms_settings_and_commands_over_results_load_no_framework(name: str):
    probe = f"import sys, {name}; print([m for m in ('torch', 'prefect', 'transformers', 'vllm') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=ROOT).strip() == "[]"


FORMER = re.compile(
    r"Workplace|sit_exam|\b[Dd]esks?\b|[Ee]rrand|\bLane\b|culprit|\b[Dd]uet|[Tt]ongue|surely_heard|\b[Cc]ouples?\b|"
    r"\bConversation\b|SwapNotProven|\bProber\b|AllValues|\bBill\b|[Rr]ehears|turns_to_learn|\b[Pp]urse\b|Unusable|"
    r"asked_of|without_doubles|BadRow|lucky crossing|choose_traces|\bled_to\b|write_whole|make_room_for_training|"
    r"\brefuse_|LEFT_OUT|\bexams?\b|\bexamined\b"
)
"""Words for things that have a term of the field now."""


def test_former_names_are_gone_and_lines_are_formatted_by_the_formatter():
    files = [
        path for part in ("flows", "tasks", "models", "reasoning", "conf", "docs") for path in (ROOT / part).rglob("*")
    ]
    texts = {
        path: path.read_text() for path in files if path.suffix in (".py", ".md", ".toml") and path.name != "log.md"
    }
    found = {str(path): FORMER.findall(text) for path, text in texts.items() if FORMER.search(text)}
    assert found == {}
    assert sum(text.count("fmt: " + "skip") for text in texts.values()) < 20
