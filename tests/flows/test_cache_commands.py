"""`brevity cache`, as people type it and read it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from flows.cache_commands import explain
from flows.cli import main
from tests.tasks.runtime.step_results import StepResults, store_in

Brevity = Callable[..., str]
"""Runs `brevity cache` with these words in the root; what it printed."""
HASH = "0" * 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(params=["runs", "memory://results"])
def made(request: pytest.FixtureRequest, here: Path) -> StepResults:
    return StepResults(request.param, here / "runs")


@pytest.fixture
def brevity(capsys: pytest.CaptureFixture[str], made: StepResults) -> Brevity:
    def run(*words: str) -> str:
        assert main(["cache", "--root", made.root, *words]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], made: StepResults) -> Brevity:
    def run(*words: str) -> str:
        assert main(["cache", "--root", made.root, *words]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        return told.removeprefix("error: ").rstrip("\n")

    return run


def tables(told: str) -> list[list[list[str]]]:
    """The rows of each table that was printed, without its heading."""
    found: list[list[list[str]]] = []
    for line in told.splitlines():
        if line.startswith("┏"):
            found.append([])
        elif line.startswith("│"):
            found[-1].append([cell.strip() for cell in line.split("│")[1:-1]])
    return found


def short(key: str) -> str:
    return key.rpartition("-")[2][:8]


def size_of(made: StepResults, *names: str) -> int:
    files, path = fsspec.url_to_fs(made.root)
    return sum(len(files.cat_file(f"{path}/{name}")) for name in names)


def printed_size(count: int) -> str:
    return f"{count:,} bytes" if count < 1000 else f"{count / 1000:.1f} kB"


def test_results_are_listed_with_totals_and_leftovers(made: StepResults, brevity: Brevity):
    first, fingerprint = made.add("count", 1, days=2)
    second, _ = made.add("count", 1, days=1, other=True)  # the same object
    third, lost = made.add("again", 2, days=3)
    made.remove(made.object_of(lost))
    brevity("pin", second, "--note", "for the [paper]")
    made.write_local(f"work/train-{HASH}/weights", 1, "12345")
    results, totals, others = tables(brevity("ls"))
    size = printed_size(size_of(made, made.object_of(fingerprint)))
    assert [row[:5] + row[6:] for row in results] == [
        ["again", short(third), "scores", "1", "0 bytes", "", "no"],
        ["count", short(second), "scores", "1", size, "for the [paper]", "yes"],
        ["count", short(first), "scores", "1", size, "", "yes"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row[5]) for row in results)
    assert results[0][5] < results[2][5] < results[1][5]  # 3, 2, 1 days ago
    assert totals == [["scores", "3", "1", size], ["all", "3", "1", size]]
    assert others[0] == ["scratch folder", "1", "5 bytes"]
    assert [row[1:] for row in others[1:]] == [["0", "0 bytes"]] * 4


def test_one_step_is_listed(made: StepResults, brevity: Brevity, refused: Brevity):
    key, _ = made.add("count", 1, days=2)
    made.add("again", 2, days=2)
    results, totals = tables(brevity("ls", "--step", "count"))
    assert [row[1] for row in results] == [short(key)]
    assert totals[-1][:2] == ["all", "1"]
    assert refused("ls", "--step", "coutn") == f"{made.root}: no results of step 'coutn'; steps: again, count"


def test_a_result_is_explained_by_its_recipe_and_its_users(made: StepResults, brevity: Brevity):
    first, source = made.add("draw", 1, days=2, problems={"levels": [1, 2], "type": "stories"})
    user, _ = made.add("count", 2, days=2, rows=source, none=None)
    same, _ = made.add("copy", 1, days=2)
    result, recipe = tables(brevity("explain", first[:-3]))
    told = dict(result)
    assert (told["key"], told["artifact"], told["pinned"]) == (first, source, "no")
    assert (told["also made by"], told["used by"]) == (same, user)
    assert told["content"].startswith("1 rows, ")
    assert told["content"].endswith(", whole")
    assert re.fullmatch(r"made .* \d\d:\d\d, last used .* \d\d:\d\d UTC", told["dates"])
    assert recipe == [
        ["inputs.content", "1"],
        ["inputs.problems.levels.0", "1"],
        ["inputs.problems.levels.1", "2"],
        ["inputs.problems.type", "stories"],
        ["step", "draw"],
        ["version", "1"],
    ]
    makers = sorted([f"draw {short(first)}", f"copy {short(same)}"])
    recipe = dict(tables(brevity("explain", short(user)))[1])
    assert recipe["inputs.none"] == "null"
    assert recipe["inputs.rows"] == f"{source[:19]} ({', '.join(makers)})"


def test_the_newest_result_of_a_step_is_compared_with_the_one_before(made: StepResults, brevity: Brevity):
    oldest, _ = made.add("train", 1, days=9, beta=1.0)
    _, pairs = made.add("pair", 1, days=9)
    before, _ = made.add("train", 1, days=9, beta=2.0, pairs=pairs)
    now, _ = made.add("train", 1, days=9, beta=2.5, pairs="pairs:unknown", lora={"r": 8})
    told = brevity("explain", "train")
    assert re.search(rf"^before: {before}, made .*\nnow:    {now}, made ", told)
    assert "the code changed" not in told
    (changes,) = tables(told)
    assert changes[0] == ["inputs.beta", "2.0", "2.5"]
    assert changes[1][::2] == ["inputs.pairs", "pairs:unknown"]
    assert changes[2] == ["inputs.lora.r", "(absent)", "8"]
    assert f"before: {oldest}" in brevity("explain", "train", "--against", short(oldest))
    assert f"now:    {oldest}" in brevity("explain", oldest, "--against", short(now))


def test_changed_code_is_told(made: StepResults, brevity: Brevity):
    made.add("train", 1, days=2, version="1")
    made.add("train", 1, days=1, version="2")
    told = brevity("explain", "train")
    assert "the code changed" in told
    assert tables(told) == []
    made.add("train", 1, days=0, version="3", beta=1)
    told = brevity("explain", "train")
    assert "the code changed" in told
    assert tables(told) == [[["inputs.beta", "(absent)", "1"]]]


def test_a_step_with_one_result_has_none_to_compare_with(made: StepResults, brevity: Brevity):
    key, _ = made.add("train", 1, days=2)
    told = brevity("explain", "train")
    assert dict(tables(told)[0])["key"] == key
    assert told.endswith("this is the only result of train: there is none to compare it with\n")


def test_old_results_are_removed_and_sizes_told(made: StepResults, brevity: Brevity):
    old, fingerprint = made.add("count", 1, days=31)
    shared, other = made.add("count", 2, days=31)
    young, _ = made.add("again", 2, days=1)
    made.write_local(f"work/train-{HASH}/weights", 31, "12345")
    records = 2 * (made.root == "runs")  # Prefect's, one byte each
    object_size = size_of(made, made.object_of(fingerprint))
    sizes = {key: size_of(made, f"manifests/{key}.json") for key in (old, shared)}
    freed = f"{printed_size(object_size + sum(sizes.values()) + records + 5)} "

    before = made.names()
    dry = brevity("gc", "--days", "30", "--dry-run")
    assert made.names() == before
    assert dry.endswith(f"{freed}would be freed\n")
    told = brevity("gc", "--days", "30")
    assert tables(told) == tables(dry)
    assert told.endswith(f"{freed}freed\n")
    (rows,) = tables(told)
    assert sorted((row[0], row[1], row[3]) for row in rows) == sorted(
        [
            ("result and object", old, printed_size(object_size + sizes[old] + records // 2)),
            ("result", shared, printed_size(sizes[shared] + records // 2)),
            ("scratch folder", f"work/train-{HASH}", "5 bytes"),
        ]
    )
    assert made.manifest_objects() == {young: made.object_of(other)}
    assert brevity("gc", "--days", "30") == "0 bytes freed\n"


def test_models_go_by_number_and_other_results_stay(made: StepResults, brevity: Brevity, refused: Brevity):
    rows, _ = made.add("count", 1, days=90)
    assert brevity("gc", "--days", "30", "--models", "0") == "0 bytes freed\n"
    assert set(made.manifest_objects()) == {rows}
    with pytest.raises(SystemExit):
        main(["cache", "gc", "--days=30", "--models=-1"])


def test_a_cache_hit_counts_as_use(made: StepResults, brevity: Brevity):
    key, _ = made.add("count", 1, days=90)
    made.add("count", 1, days=90)
    store = store_in(made.root, made.local)
    manifest = store._manifest(key)
    assert manifest
    store.record(key, manifest.recipe, manifest.artifact)
    assert brevity("gc", "--days", "30") == "0 bytes freed\n"
    assert set(made.manifest_objects()) == {key}


def test_a_pinned_result_and_its_inputs_are_kept(made: StepResults, brevity: Brevity, refused: Brevity):
    source, fingerprint = made.add("draw", 1, days=90)
    key, _ = made.add("count", 2, days=90, rows=fingerprint)
    made.add("other", 3, days=90, rows=fingerprint)
    assert brevity("pin", "count") == f"pinned: {key}\n"
    assert [row[6] for row in tables(brevity("ls", "--step", "count"))[0]] == ["yes"]
    brevity("gc", "--days", "0")
    assert set(made.manifest_objects()) == {source, key}
    assert refused("unpin", "draw").startswith("no pinned key begins with 'draw'")
    assert brevity("unpin", short(key)) == "pins removed: 1\n"
    brevity("gc", "--days", "0")
    assert made.names() == set()


def test_a_run_is_pinned_with_all_its_results(made: StepResults, brevity: Brevity, refused: Brevity, here: Path):
    first, _ = made.add("draw", 1, days=90)
    second, _ = made.add("count", 2, days=90)
    made.add("other", 3, days=90)
    run = here / "run"
    run.mkdir()
    (run / "keys.txt").write_text(f"{first}\n{second}\n{first}\ngone-{HASH}\n../../precious\n")
    (here / "latest").symlink_to("run")
    assert refused("unpin", "latest") == f"latest: none of its results is pinned in {made.root}"
    assert brevity("pin", "latest", "--note", "paper") == "pinned: 2 of 4 results\n"
    brevity("gc", "--days", "0")
    assert set(made.manifest_objects()) == {first, second}
    assert brevity("unpin", "latest") == "pins removed: 2\n"
    (run / "keys.txt").write_text(f"gone-{HASH}\n")
    assert refused("pin", "run") == f"run: none of its results is in {made.root}; give --root the run's storage.root"


def test_mistakes_are_told_in_one_line(made: StepResults, refused: Brevity, here: Path):
    made.add("count", 1, days=2)
    made.add("count", 2, days=2)
    (here / "folder").mkdir()
    before = made.names()
    assert refused("pin", "folder").startswith("folder: no keys.txt; name the folder of a run, such as runs/latest")
    assert refused("pin", "count").startswith("2 keys begin with 'count'; give more of one: count-")
    assert refused("explain", "nothing").startswith("no key begins with 'nothing'; `brevity cache ls` lists")
    assert refused("explain", "count", "--against", "x").startswith("no key begins with 'x'")
    assert refused("pin", "../manifests/x").startswith("no key begins with '../manifests/x'")
    assert made.names() == before


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "1e9", "many"])
def test_days_are_a_number_that_is_not_negative(made: StepResults, capsys: pytest.CaptureFixture[str], days: str):
    """A negative number would remove what was used just now."""
    with pytest.raises(SystemExit):
        main(["cache", "gc", f"--days={days}"])
    assert "argument --days: must be a number from 0 to 100,000" in capsys.readouterr().err


def test_a_root_without_results_is_told(capsys: pytest.CaptureFixture[str]):
    for words in (["ls"], ["explain", "x"], ["gc", "--days", "1"], ["pin", "x"], ["unpin", "x"]):
        assert main(["cache", *words]) == 2
        assert capsys.readouterr().err.startswith("error: runs: holds no results of steps; give --root")


def test_an_error_of_the_storage_is_told_in_one_line(
    made: StepResults, refused: Brevity, monkeypatch: pytest.MonkeyPatch
):
    def failing(root: str) -> None:
        raise PermissionError(13, "Permission denied", root)

    monkeypatch.setattr("flows.cache_commands.CacheFiles", failing)
    assert refused("ls") == (
        f"{made.root}: [Errno 13] Permission denied: '{made.root}'; give this user access to it, or another --root"
    )


def test_control_characters_do_not_reach_the_terminal(made: StepResults, capsys: pytest.CaptureFixture[str]):
    made.add("train", 1, days=2, text="a\x1b[2Jb")
    made.add("train", 1, days=1, text="c\x1b]0;x\x07")
    explain(made.root, "train", "")
    assert "\x1b" not in capsys.readouterr().out
