"""The page: what it holds, its policy, its headline, and where it is served."""

import base64
import hashlib
import re
import threading
from pathlib import Path

import httpx
import pytest

from tasks.reports.page.blocks import Blocks
from tasks.reports.page.page import headline, write_page
from tasks.reports.page.server import NoPageError, serve_page
from tasks.runtime.run_directory import PAGE_FILE
from tests.tasks.reports.page.pages import HOSTILE, answered, contents, problem
from tests.tasks.reports.reports import report as small_report


def report():
    return small_report() | {"versions": {"torch": "2"}, "config": {"seed": 0}}


def test_a_page_holds_every_problem_and_its_place(tmp_path: Path):
    problems = [problem(number, pieces=400) for number in range(60)]
    held = contents(write_page(tmp_path / "report.html", report(), problems))
    assert held["problems"] == [one.model_dump(mode="json") for one in problems]
    rows = held["index"]["rows"]
    assert [row[0] for row in rows] == [one.id for one in problems]
    assert sum(row[-1] == 0 for row in rows) > 1  # several blocks
    assert held["index"]["sets"] == ["training"]
    assert held["index"]["tags"] == ["cut"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_without_problems(tmp_path: Path):
    assert contents(write_page(tmp_path / "report.html", report())) == {
        "index": {"sets": [], "tags": [], "rows": []},
        "problems": [],
    }


def test_problems_that_do_not_fit_are_counted():
    blocks = Blocks(max_bytes=1)
    packed = list(blocks.pack(problem(number, pieces=2000) for number in range(10)))
    assert len(packed) >= 1
    assert blocks.left_out > 0


def test_hostile_text_is_nowhere_as_it_is(tmp_path: Path):
    hostile = report() | {"preset": HOSTILE[0], "warnings": [HOSTILE[1]], "config": {"name": HOSTILE[0]}}
    hostile["tables"] = [{"title": HOSTILE[0], "rows": [{HOSTILE[0]: HOSTILE[1]}], "is_pooled": True}]
    problems = [problem(1, text) for text in HOSTILE] + [answered(2, text) for text in HOSTILE[:4]]
    text = write_page(tmp_path / "report.html", hostile, problems).read_text()
    assert "owned'</script>" not in text
    assert "<img src=x" not in text


def test_the_policy_allows_this_script_and_this_style_alone(tmp_path: Path):
    text = write_page(tmp_path / "report.html", report()).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;;" in policy.replace("'", "&#39;")
    assert policy.startswith("default-src")
    assert "unsafe" not in policy
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_the_headline_says_what_came_out_and_what_it_rests_on():
    said = headline(report())
    # tokens (5 + 10 + 20) / (20 + 20 + 40); accuracy 2.5 of 3 problems against 1.5
    assert said["result"].startswith("dto takes 44 % [")
    assert "of the tokens of base; its accuracy is 33.3 points higher [" in said["result"]
    assert said["rests"].startswith(
        "3 problems of main, 4 completions a model, seeds 0, 1, one training a seed and model"
    )
    assert said["even"]


def test_the_page_is_served_to_visitors_of_this_machine_alone(tmp_path: Path):
    write_page(tmp_path / PAGE_FILE, report(), [problem(1)])
    with serve_page(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        with httpx.Client(trust_env=False) as client:
            answer = client.get(url)
            assert answer.text == (tmp_path / PAGE_FILE).read_text()
            assert client.get(f"{url}../../etc/passwd").text == answer.text
            assert client.get(url, headers={"Host": "evil.example:80"}).status_code == 403
        server.shutdown()


def test_a_folder_without_a_page(tmp_path: Path):
    with pytest.raises(NoPageError, match=r"no report\.html; name the folder of a finished run"):
        serve_page(tmp_path, 0)
