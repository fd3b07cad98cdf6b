"""`segment-traces` and `find-overlap`: rows in, rows out, one line for what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main


def written(folder: Path, name: str, *lines: Any) -> str:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_texts_are_cut_in_the_language_of_their_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    english = {"text": "It is 4. Wait, no.", "id": 7}
    chinese = {"text": "是4。等等，不对。", "language": "chinese"}
    file = written(tmp_path, "traces.jsonl", english, chinese, {"text": "x\ud800", "language": "german"})
    code, rows, err = ran(capsys, "segment-traces", file)
    assert (code, err) == (0, "")
    assert rows == [
        english | {"segments": ["It is 4.", " Wait, no."]},
        chinese | {"segments": ["是4。", "等等，不对。"]},
        {"text": "x\ud800", "language": "german", "segments": ["x\ud800"]},
    ]
    assert ran(capsys, "segment-traces", file, "--min-chars", "12")[1][0]["segments"] == [english["text"]]


def test_what_cannot_be_cut_comes_out_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(
        tmp_path, "traces.jsonl", {"text": "It is 4.", "language": ["x"]}, {"txt": "a"}, "nope", {"text": ""}
    )
    code, rows, err = ran(capsys, "segment-traces", file)
    assert (code, err) == (2, "error: 3 of 4 rows could not be used; field error of their lines says why\n")
    assert rows[0]["error"] == "no markers for language ['x']; it must be one of english, chinese, german"
    assert rows[1]["error"] == "no text in field text; its fields: txt"
    assert rows[2]["error"].startswith(f"{file}:3: not JSON")
    assert rows[3]["segments"] == []


def test_each_problem_comes_out_with_what_holds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = written(tmp_path, "a.jsonl", {"problem": "What is $2+2$?"}, {"question": "What is 2-2?", "id": 1})
    other = written(
        tmp_path, "b.jsonl", {"text": "What is 3?"}, "", {"text": "Compute 2 + 2. Think step by step.", "id": "x"}
    )
    code, rows, err = ran(capsys, "find-overlap", mine, other)
    assert (code, err) == (0, "")
    found = {"line": 3, "id": "x", "text": "Compute 2 + 2. Think step by step.", "share": 1.0}
    assert rows == [
        {"problem": "What is $2+2$?", "overlap": found},
        {"question": "What is 2-2?", "id": 1, "overlap": None},
    ]


def test_rows_without_a_problem_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = {"problem": "What is 2+2?"}, {"prompt": "What is 2+2?"}
    mine, other = written(tmp_path, "a.jsonl", bad, good), written(tmp_path, "b.jsonl", good)
    code, rows, err = ran(capsys, "find-overlap", mine, other)
    assert (code, err) == (2, "error: 1 of 2 rows could not be used; field error of their lines says why\n")
    assert rows[0]["error"] == "no text in problem, text or question; its fields: prompt"
    assert rows[1]["overlap"]["line"] == 1
    code, rows, err = ran(capsys, "find-overlap", other, mine)
    assert (code, err) == (2, f"error: {mine}:1: 1 of 2 rows have no text in problem, text or question\n")
    assert rows[0]["overlap"]["line"] == 2
    assert "No such file" in ran(capsys, "find-overlap", mine, str(tmp_path / "none.jsonl"))[2]
