"""Talking with the two models of a run on the terminal."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.long_short import LongShort
from flows.__main__ import main
from flows.two_model_server import hosts_of
from models.checkpoints.checkpoint import TINY_MODEL
from tests.models.spoken import PROTOCOL, Vllm, answer, think


@pytest.fixture
def servers() -> Iterator[list[Vllm]]:
    servers = [Vllm(think), Vllm(answer)]
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "model_pair.json").write_text(json.dumps({"long": str(TINY_MODEL), "short": str(TINY_MODEL)}))
    (tmp_path / "config.json").write_text(LongShort(protocol=PROTOCOL).model_dump_json())
    return tmp_path


def told(monkeypatch: pytest.MonkeyPatch, run: Path, servers: list[Vllm], typed: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return main(["chat", "long-short", "--model", str(run), "--servers", *(server.url for server in servers)])


def test_turns_are_shown_with_who_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, servers: list[Vllm]
):
    assert told(monkeypatch, run, servers, "Ann has 4.\nBob has 4.\n\nnever asked\n") == 0
    shown = capsys.readouterr().out
    turns = ["long: \nStart with 4.", "short: \nIt is 4?", "long: \nWait, 4 < 5.", "short: \nThe answer is \\boxed{4}."]
    places = [shown.index(turn) for turn in turns]
    assert places == sorted(places)
    assert [shown.count(turn) for turn in turns] == [2] * 4
    assert shown.count(" tokens)") == 2
    assert [("Ann has 4." in prompt, "Bob has 4." in prompt) for prompt in servers[0].asked] == [(True, False)] * 2 + [
        (False, True)
    ] * 2


def test_control_characters_of_a_model_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, servers: list[Vllm]
):
    servers[1].script = lambda _: "\n\x1b[2J[red]4[/red] \\boxed{4}.\n</answer>"
    assert told(monkeypatch, run, servers, "Ann has 4.\n") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]4[/red]" in shown


def test_a_server_that_is_gone_ends_a_question_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, servers: list[Vllm]
):
    servers[1].close()
    assert told(monkeypatch, run, servers, "Ann has 4.\nBob has 4.\n") == 0
    assert capsys.readouterr().out.count("error: the short-thought model's server at") == 2


def test_a_folder_without_a_couple_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, servers: list[Vllm]
):
    assert told(monkeypatch, tmp_path / "empty", servers, "Ann has 4.\n") == 2
    assert "no model_pair.json; name the folder of a finished run of long-short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"rl": {"clip": 0.2}}'),
        ("config.json", "{"),
        ("model_pair.json", "{}"),
        ("model_pair.json", ""),
    ],
)
def test_a_run_of_another_version_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], run: Path, servers: list[Vllm], file: str, text: str
):
    (run / file).write_text(text)
    assert main(["chat", "long-short", "--model", str(run), "--servers", *(server.url for server in servers)]) == 2
    assert "if another version made them, do the run again" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str], run: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "long-short", "--model", str(run), "--port", port]) == 2
    assert (
        "cannot be listened on (Address already in use); name another with --host or --port" in capsys.readouterr().err
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "node1"])
def test_other_machines_are_let_in_only_with_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, host: str
):
    monkeypatch.delenv("BREVITY_SERVE_KEY", raising=False)
    assert main(["serve", "long-short", "--model", str(run), "--port", "0", "--host", host]) == 2
    assert f"other machines reach {host}: set BREVITY_SERVE_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "127.0.0.1"]),
        ("localhost", ["localhost", "localhost", "127.0.0.1"]),
        ("0.0.0.0", ["*"]),
        ("10.0.0.7", ["*"]),
    ],
)
def test_on_loopback_no_name_of_somebody_elses_leads_here(host: str, names: list[str]):
    assert hosts_of(host) == names


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_the_number_of_processes_is_at_least_one(workers: str):
    with pytest.raises(SystemExit):
        main(["serve", "long-short", "--workers", workers])
