"""SIGKILL at twenty points of a run: no finished completion is generated again, and decisions follow from the stored
samples."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.rollout_store import Purpose, RolloutStore, completion_key
from reasoning.token_ids import TokenIds
from tests.models.fakes import fake_checkpoint
from tests.models.killed import PREFIXES, SAMPLING, TRACES, job

KILLS = 20


def stored(url: str, model: Checkpoint) -> dict[tuple[int, ...], list[Completion]]:
    prompts = [(trace, prefix) for trace in range(TRACES) for prefix in range(PREFIXES)]
    requests = {prompt: Request(TokenIds(prompt), SAMPLING, 1) for prompt in prompts}
    keys = {prompt: completion_key(model, request, Purpose.PROBE, 0) for prompt, request in requests.items()}
    stored_completions = RolloutStore(url).find(list(keys.values()))
    return {prompt: stored_completions[key] for prompt, key in keys.items()}


def replayed(trace: int, samples: dict[tuple[int, ...], list[Completion]]) -> int | None:
    """The crossing that follows from a trace's stored samples."""
    again = job(trace)
    while sample_ranges := again.plan.next_ranges():
        for sample_range in sample_ranges:
            group = samples[trace, sample_range.prefix][sample_range.first : sample_range.first + sample_range.count]
            assert len(group) == sample_range.count
            again.plan.add(sample_range, again.score(group))
    return again.plan.crossing  # type: ignore[attr-defined]


def run(url: str, model: Checkpoint, log: Path, lines: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.models.killed", url, str(model.folder), str(log), str(lines)]
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True)


def test_no_finished_completion_is_generated_again(tmp_path: Path):
    url, log = f"sqlite:///{tmp_path / 'store'}", tmp_path / "log"
    model, kill_points = fake_checkpoint(tmp_path / "model"), random.Random(20)
    log.touch()
    before, read = stored(url, model), 0
    for _ in range(KILLS):
        killed = run(url, model, log, kill_points.randrange(1, 10_000))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        sent = [json.loads(line) for line in log.read_text().splitlines()]
        assert all(first >= len(before[tuple(prompt)]) for prompt, first, _ in sent[read:])
        after = stored(url, model)
        assert all(after[prompt][: len(group)] == group for prompt, group in before.items())
        before, read = after, len(sent)
    ended = run(url, model, log, 0)
    assert ended.returncode == 0, ended.stderr
    last = [json.loads(line) for line in log.read_text().splitlines()][read:]
    after = stored(url, model)
    new = {prompt: len(group) - len(before[prompt]) for prompt, group in after.items()}
    assert sum(count for _, _, count in last) == sum(new.values())  # a run that is not killed loses nothing
    assert json.loads(ended.stdout) == [replayed(trace, after) for trace in range(TRACES)]
