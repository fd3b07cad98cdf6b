"""The two models of a run whose storage is remote."""

import json
from pathlib import Path

import fsspec
import pytest

from conf.long_short import LongShort
from reasoning.dialogue import Speaker
from tasks.reports.model_pair import load_model_pair
from tasks.runtime.fetched import FetchedFiles
from tests.tasks.runtime.step_results import COUNT, store_in

ROOT = "memory://pair"


def test_remote_models_are_fetched_and_stay_while_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    uris = {}
    for speaker in Speaker:
        (tmp_path / speaker).mkdir()
        (tmp_path / speaker / "weights").write_text(speaker)
        uris[speaker] = store_in(ROOT, tmp_path).publish_folder("checkpoint", tmp_path / speaker, COUNT).uri
    (tmp_path / "model_pair.json").write_text(json.dumps(uris))
    (tmp_path / "config.json").write_text(json.dumps({"storage": {"root": ROOT}}))
    pair = load_model_pair(tmp_path)
    assert isinstance(pair.settings, LongShort)
    assert {speaker: (folder / "weights").read_text() for speaker, folder in pair.folders.items()} == {
        speaker: speaker for speaker in Speaker
    }
    others = FetchedFiles(tmp_path / "runs" / "fetched", max_bytes=1)
    others.path("other", 10, Path.touch, Path.exists)  # finds no room, and takes none
    assert all((folder / "weights").is_file() for folder in pair.folders.values())
    fsspec.filesystem("memory").store.clear()
