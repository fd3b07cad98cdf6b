"""Messages about settings contain no keys."""

from pathlib import Path

import pytest

from conf.cot_distillation import CotDistillation
from conf.llm import Llm
from conf.load import SettingsError, load
from conf.redaction import names_secret, redacted
from flows.__main__ import main

SECRETS = ("sk-123", "hunter2", "0a1b2c3d4e5f6a7b8c9d0e1f", "12345")


@pytest.mark.parametrize(
    "assignment",
    [
        "llm.key=sk-123",
        "llm.kye=hunter2",
        "llm.api_key=12345",
        'llm.apiKey=["hunter2"]',
        "password=12345",
        "llm.headers.authorization=hunter2",
        'llm.headers={authorization = "hunter2"}',
        "hf_token=hunter2",
        "teacher.llm.key=hunter2",
        "teacher.llm.secret=hunter2",
        "llm.key_variable=hunter2",
        "llm.url=sk-123",
        "llm.url=https://me:hunter2@host/v1",
        "llm.url=https://host/v1?api_key=hunter2",
        "llm.timeout=sk-123",
        "llm.url=0a1b2c3d4e5f6a7b8c9d0e1f",
        "llm.model.key=hunter2",
        "llm.timeout.key=hunter2",
        "problems.type=sk-123",
        "llm.key hunter2",
        "llm.key:hunter2",
        "sk-123",
        "judging.key=hunter2",
        "benchmarks.x.key=hunter2",
        "compression.by.key=hunter2",
        "storage.credentials.x=hunter2",
    ],
)
def test_rejected_assignments_do_not_show_secrets(capsys: pytest.CaptureFixture[str], assignment: str):
    given = ["--set", "llm.model=m", "--set", "teacher.type=endpoint", "--set", assignment]
    assert main(["run", "cot-distillation", *given]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert not any(secret in message for secret in SECRETS)


def test_key_as_setting_is_rejected_with_a_remedy(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "dto", "--set", "llm.key=sk-123"]) == 2
    message = capsys.readouterr().err
    assert "llm.key: unknown setting; keys are no settings" in message
    assert "BREVITY_LLM_KEY" in message


@pytest.mark.parametrize("words", [["--set", "llm.key", "hunter2"], ["llm.key=hunter2"], ["--llm.key=hunter2"]])
def test_misplaced_key_on_the_command_line_is_not_shown(capsys: pytest.CaptureFixture[str], words: list[str]):
    with pytest.raises(SystemExit):
        main(["run", "dto", *words])
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[llm]\nkey = hunter2\n",
        '[llm]\nkey = "hunter2\n',
        '[llm]\nkey = "hunter2"\nkey = "hunter2"\n',
        "hunter2\n",
        '[llm]\nkey "hunter2"\n',
        '[llm]\nkey = "hunter2"\n',
        "[hunter2\n",
        'key = "\\hunter2"\n',
    ],
)
def test_rejected_presets_do_not_show_secrets(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(CotDistillation, str(path))
    assert "hunter2" not in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_harmless_values_are_shown():
    for assignment, words in (
        ("sampling.max_tokens=abc", "(given: 'abc')"),
        ("sampling.sample=2", "(given: 2); did you mean 'samples'?"),
        ("llm.url=localhost:8000", "(given: 'localhost:8000')"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(CotDistillation, "tiny", (assignment,))
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://me:pw@host/v1", "leave them out"),
        ("https://host/v1?key=x", "leave them out"),
        ("https://host/v1/chat/completions", "leave that out"),
        ("https://host:99999/v1", "Port out of range"),
    ],
)
def test_endpoint_url_must_not_contain_secrets_or_the_chat_path(url: str, words: str):
    with pytest.raises(ValueError, match=words):
        Llm(url=url, model="m")
    assert Llm(url=" https://host/v1\n", model="m").url == "https://host/v1"


def test_urls_with_passwords_are_rejected():
    for field in ("storage.rollout_store", "storage.root"):
        with pytest.raises(SettingsError, match=f"{field}: Value error, holds a password") as caught:
            load(CotDistillation, "tiny", (f"{field}=postgresql+psycopg://me:hunter2@host/db",))
        assert "hunter2" not in str(caught.value)
        load(CotDistillation, "tiny", (f"{field}=postgresql+psycopg://me@host/db",))


def test_names_and_patterns_of_secrets():
    assert all(map(names_secret, ("key", "API_KEY", "hf_token", "password", "Authorization", "client_secret")))
    assert not any(map(names_secret, ("max_tokens", "max_turn_tokens", "model", "url", "seed")))
    assert (
        redacted("postgresql://me:pw@host/db and a sketch of skill") == "postgresql://***@host/db and a sketch of skill"
    )
