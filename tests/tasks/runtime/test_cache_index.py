from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.cache_index import (
    Absent,
    CachedResult,
    CacheError,
    CacheIndex,
    Leftover,
    LeftoverKind,
    RecipeChange,
    StoredObject,
    leaves,
    match_key,
    plan_models_removal,
    plan_removal,
    recipe_changes,
)

NOW = datetime(2026, 11, 30, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=30)


def result(key: str, digest: str, days: float, inputs: Any = None, **more: Any) -> CachedResult:
    artifact = ArtifactRef(kind="rows", uri="", digest=digest, rows=1)
    recipe = {"step": key.rpartition("-")[0], "version": "1", "inputs": inputs or {}}
    return CachedResult(key, recipe, artifact, more.pop("made", None), NOW - timedelta(days=days), **more)


def stored(digest: str, days: float = 100, size: int = 10) -> StoredObject:
    return StoredObject("rows", f"{digest}.parquet", size, NOW - timedelta(days=days))


def removed(index: CacheIndex) -> tuple[list[str], list[str]]:
    """Keys of the results and digests of the objects that go after 30 days."""
    plan = plan_removal(index, CUTOFF)
    return [row.key for row in plan.results], [row.fingerprint.removeprefix("rows:") for row in plan.objects]


def test_results_go_when_they_were_not_used_for_long():
    index = CacheIndex([result("a-1", "x", 31), result("b-2", "y", 29)], [stored("x"), stored("y")])
    assert removed(index) == (["a-1"], ["x"])


def test_an_object_stays_while_a_remaining_result_is_made_of_it():
    old, young = result("a-1", "x", 31), result("b-2", "x", 29)
    assert removed(CacheIndex([old, young], [stored("x")])) == (["a-1"], [])
    assert removed(CacheIndex([old, result("b-2", "x", 40)], [stored("x")])) == (["a-1", "b-2"], ["x"])


def test_pinned_results_stay_with_everything_that_they_were_made_from():
    first = result("a-1", "x", 90)
    second = result("b-2", "y", 90, {"rows": ["rows:x"], "count": 3})
    third = result("c-3", "z", 90, {"nested": {"rows": "rows:y"}}, pin="")
    other = result("d-4", "u", 90, {"rows": "rows:z"})  # made from the pinned one
    index = CacheIndex([first, second, third, other], [stored(name) for name in "xyzu"])
    assert removed(index) == (["d-4"], ["u"])


def test_what_an_unpinned_result_was_made_from_does_not_stay_on_its_account():
    index = CacheIndex([result("a-1", "x", 31), result("b-2", "y", 1, {"rows": "rows:x"})], [stored("x"), stored("y")])
    assert removed(index) == (["a-1"], ["x"])


def test_an_object_without_manifest_goes_by_its_own_age():
    index = CacheIndex([], [stored("x", days=31), stored("y", days=29)])
    assert removed(index) == ([], ["x"])
    assert index.unreferenced == list(index.objects)


def test_leftovers_go_by_their_age_and_all_sizes_are_added():
    old = Leftover(LeftoverKind.SCRATCH, "work", "a-1", 100, NOW - timedelta(days=31))
    young = old._replace(name="b-2", modified=NOW - timedelta(days=29))
    plan = plan_removal(CacheIndex([result("a-1", "x", 31, bytes=3)], [stored("x")], [old, young]), CUTOFF)
    assert plan.leftovers == [old]
    assert plan.bytes == 3 + 10 + 100


@pytest.mark.parametrize(("kept", "gone"), [(0, "uvw"), (1, "uvw"), (2, "uv"), (3, "u"), (4, "u"), (5, "")])
def test_of_old_models_those_used_last_stay(kept: int, gone: str):
    """The young one and the pinned one count among those that stay; other results are left alone."""
    ages = {"u": 90, "v": 70, "w": 50, "y": 1}
    made = [result(f"train-{name}", name, days) for name, days in ages.items()]
    made += [result("again-w", "w", 60), result("train-p", "p", 80, pin="")]
    models = [replace(one, artifact=one.artifact.model_copy(update={"kind": "checkpoint"})) for one in made]
    objects = [stored(name)._replace(kind="checkpoint", name=name) for name in "puvwy"]
    leftover = Leftover(LeftoverKind.SCRATCH, "work", "a-1", 100, NOW - timedelta(days=31))
    index = CacheIndex([*models, result("a-1", "x", 90)], [*objects, stored("x")], [leftover])
    plan = plan_models_removal(index, CUTOFF, kept)
    assert sorted({one.artifact.digest for one in plan.results}) == list(gone)
    assert sorted(one.name for one in plan.objects) == list(gone)
    assert not plan.leftovers


def test_a_result_that_was_used_exactly_at_the_cutoff_stays():
    assert removed(CacheIndex([result("a-1", "x", 30)], [stored("x")])) == ([], [])


def test_an_object_of_several_results_counts_once():
    rows = [result("a-1", "x", 1), result("b-2", "x", 1), result("c-3", "y", 1), result("d-4", "gone", 1)]
    index = CacheIndex(rows, [stored("x", size=10), stored("y", size=7)])
    assert index.total_bytes(rows) == 17
    assert [index.is_whole(row) for row in rows] == [True, True, True, False]


def test_users_are_the_results_whose_inputs_name_the_artifact():
    first, user = result("a-1", "x", 1), result("b-2", "y", 1, {"deep": [{"rows": "rows:x"}]})
    near = result("c-3", "z", 1, {"text": "about rows:x", "rows": "rows:xx"})
    assert CacheIndex([first, user, near]).users(first) == [user]


def test_the_newest_result_is_the_one_that_was_made_last():
    """A result that was taken from the cache today may have been made long ago."""
    early = result("a-1", "x", 0, made=NOW - timedelta(days=9))
    late = result("a-2", "y", 5, made=NOW - timedelta(days=8))
    undated = [result("a-3", "z", 3), result("a-4", "u", 4)]  # by an earlier version
    other = result("b-5", "v", 0, made=NOW)
    assert CacheIndex([undated[1], early, other, undated[0], late]).of_step("a") == [late, early, *undated]


KEYS = ["evaluate-12ab", "evaluate-12cd", "evaluate-pairs-77aa", "train-sft-77ee"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("evaluate-12a", KEYS[0]),
        ("12cd", KEYS[1]),
        ("train", KEYS[3]),
        ("evaluate-pairs-77aa", KEYS[2]),
        ("77a", KEYS[2]),
    ],
)
def test_the_beginning_of_a_key_or_of_its_hash_is_enough(text: str, key: str):
    assert match_key(text, KEYS) == key


def test_a_whole_key_is_meant_even_where_another_begins_with_it():
    assert match_key("a-1", ["a-1", "a-12"]) == "a-1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "no key begins with 'nothing'; `brevity cache ls` lists"),
        ("../evaluate-12ab", "no key begins with '../evaluate-12ab'"),
        ("evaluate-1", "2 keys begin with 'evaluate-1'; give more of one: evaluate-12ab, evaluate-12cd"),
        ("77", "2 keys begin with '77'; give more of one: evaluate-pairs-77aa, train-sft-77ee"),
        ("", "4 keys begin with ''"),
    ],
)
def test_unknown_and_ambiguous_keys_are_refused(text: str, words: str):
    with pytest.raises(CacheError) as error:
        match_key(text, KEYS)
    assert words in str(error.value)


def test_only_ten_candidates_are_listed():
    with pytest.raises(CacheError, match=r"a-09 and 2 more$"):
        match_key("a", [f"a-{number:02}" for number in range(12)])


def test_leaves_have_the_path_that_leads_to_them():
    value = {"a": {"b": [1, {"c": None}]}, "d": [], "e": {}}
    assert list(leaves(value)) == [(("a", "b", "0"), 1), (("a", "b", "1", "c"), None), (("d",), []), (("e",), {})]


def test_changes_are_the_leaves_that_differ():
    before = {"version": "1", "inputs": {"beta": 2.0, "same": [1], "gone": None, "levels": [1, 2]}}
    now = {"version": "1", "inputs": {"beta": 2.5, "same": [1], "levels": [1, 3, 4], "new": "x"}}
    assert recipe_changes(before, now) == [
        RecipeChange(("inputs", "beta"), 2.0, 2.5),
        RecipeChange(("inputs", "gone"), None, Absent.ABSENT),
        RecipeChange(("inputs", "levels", "1"), 2, 3),
        RecipeChange(("inputs", "levels", "2"), Absent.ABSENT, 4),
        RecipeChange(("inputs", "new"), Absent.ABSENT, "x"),
    ]
    assert recipe_changes(now, now) == []


@pytest.mark.parametrize(("before", "now"), [(1, True), (1, 1.0), (0, False), ("(absent)", None), ({}, [])])
def test_values_differ_where_their_json_differs(before: Any, now: Any):
    """So do the keys, though Python counts 1, 1.0 and True as equal."""
    assert recipe_changes({"a": before}, {"a": now}) == [RecipeChange(("a",), before, now)]


def test_names_with_dots_are_not_taken_for_paths():
    assert len(recipe_changes({"a.b": 1, "a": {"b": 2}}, {"a.b": 2, "a": {"b": 1}})) == 2


def test_a_value_that_reads_like_the_mark_of_absence_is_not_absent():
    assert recipe_changes({"a": "(absent)", "b": 1}, {"b": 1}) == [RecipeChange(("a",), "(absent)", Absent.ABSENT)]
