"""What is read from a root, and what a removal leaves there, also when it is killed."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.runtime.cache_files import CacheFiles, StoredFolder
from tasks.runtime.cache_index import CacheError, LeftoverKind, plan_removal
from tests.tasks.runtime.step_results import COUNT, StepResults, store_in

HASH = "0" * 40
MEMORY = "memory://results"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, where a remote root has its local counterpart `runs`."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    clear_memory()


def clear_memory() -> None:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def made(request: pytest.FixtureRequest, here: Path) -> StepResults:
    return StepResults(str(here / "runs") if request.param == "local" else MEMORY, here / "runs")


@pytest.fixture
def local(here: Path) -> StepResults:
    return StepResults(str(here / "runs"), here / "runs")


def clean(root: str, days: float) -> int:
    cutoff = datetime.now(UTC) - timedelta(days=days)
    files = CacheFiles(root)
    return files.remove(plan_removal(files.index(), cutoff), cutoff)


def days_since(moment: datetime) -> int:
    return round((datetime.now(UTC) - moment) / timedelta(days=1))


def test_a_result_is_read_with_its_recipe_age_and_size(made: StepResults):
    key, fingerprint = made.add("count", 7, days=3, limit=5)
    (found,) = CacheFiles(made.root).index().results
    assert (found.key, found.step, found.fingerprint, found.artifact.rows) == (key, "count", fingerprint, 1)
    assert found.recipe == {"step": "count", "version": "1", "inputs": {"content": 7, "limit": 5}}
    assert days_since(found.last_used) == 3
    assert found.made
    assert days_since(found.made) == 0  # ages are set afterwards
    files, path = fsspec.url_to_fs(made.root)
    record = 1 if isinstance(files, LocalFileSystem) else 0  # "x"
    assert found.bytes == len(files.cat_file(f"{path}/manifests/{key}.json")) + record


def test_objects_are_listed_with_their_size_and_kind(made: StepResults):
    _, fingerprint = made.add("count", 7, days=3)
    index = CacheFiles(made.root).index()
    files, path = fsspec.url_to_fs(made.root)
    assert index.object_bytes == {fingerprint: files.size(f"{path}/{made.object_of(fingerprint)}")}
    made.remove(made.object_of(fingerprint))
    index = CacheFiles(made.root).index()
    assert [index.is_whole(found) for found in index.results] == [False]


def test_a_folder_is_an_object_with_the_size_of_its_files(made: StepResults, tmp_path: Path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "weights").write_bytes(b"12345")
    (tmp_path / "model" / "deep" / "config").write_bytes(b"123")
    key, _ = made.add("count", 7, days=3)
    store = store_in(made.root, made.local)
    ref = store.publish_folder("checkpoint", tmp_path / "model", COUNT)
    store.record(f"train-{HASH}", {"step": "train", "inputs": {}}, ref)
    index = CacheFiles(made.root).index()
    sizes = {stored.fingerprint: stored.bytes for stored in index.objects if stored.kind == "checkpoint"}
    assert sizes == {ref.fingerprint(): 8}
    made.set_age(f"manifests/train-{HASH}.json", 40)
    clean(made.root, 30)
    assert set(made.manifest_objects()) == {key}
    assert not any("checkpoint" in name for name in made.names())


def test_everything_of_an_old_result_goes(local: StepResults):
    key, _ = local.add("count", 7, days=31)
    local.write_local(f"set-aside/{key}.jsonl", 31)
    young, fingerprint = local.add("count", 8, days=29)
    local.write_local(f"set-aside/{young}.jsonl", 40)
    sizes = {name: (local.local / name).stat().st_size for name in local.names()}
    freed = clean(local.root, 30)
    rest = {f"manifests/{young}.json", f"cache/{young}", f"set-aside/{young}.jsonl", local.object_of(fingerprint)}
    assert local.names() == rest
    assert freed == sum(size for name, size in sizes.items() if name not in rest)


def test_a_remote_root_is_cleaned_with_its_local_lists(here: Path):
    made = StepResults(MEMORY, here / "runs")
    key, _ = made.add("count", 7, days=31)
    made.write_local(f"set-aside/{key}.jsonl", 31)
    made.write_local(f"set-aside/other-{HASH}.jsonl", 31)  # may be of a local root
    made.write_local(f"work/train-{HASH}/weights", 31)
    young, fingerprint = made.add("count", 8, days=29)
    clean(MEMORY, 30)
    assert made.names() == {f"manifests/{young}.json", made.object_of(fingerprint), f"set-aside/other-{HASH}.jsonl"}


OLD_LEFTOVERS = {
    f"work/train-{HASH}/checkpoints/weights": LeftoverKind.SCRATCH,
    f"work/.done-train-{HASH}/weights": LeftoverKind.SCRATCH,
    f"objects/.{'a' * 32}": LeftoverKind.TEMPORARY,
    f"manifests/.{'b' * 32}": LeftoverKind.TEMPORARY,
    f"set-aside/.train-{HASH}.jsonl": LeftoverKind.TEMPORARY,
    f"set-aside/train-{HASH}.jsonl": LeftoverKind.LIST,
    f"cache/train-{HASH}": LeftoverKind.RECORD,
}
NOT_OURS = ["work/thesis/chapter", "cache/pip", "objects/notes.txt", "objects/scores/readme", "set-aside/list.jsonl"]


def test_leftovers_go_when_they_are_old_and_unknown_names_never(local: StepResults):
    local.add("count", 7, days=0)
    kept = local.names()
    for name in OLD_LEFTOVERS:
        local.write_local(name, 31)
    for name in NOT_OURS:
        local.write_local(name, 1000)
    found = CacheFiles(local.root).index().leftovers
    assert sorted((item.kind, item.folder) for item in found) == sorted(
        (kind, name.partition("/")[0]) for name, kind in OLD_LEFTOVERS.items()
    )
    assert all(days_since(item.modified) == 31 for item in found)
    assert clean(local.root, 32) == 0
    assert clean(local.root, 30) == len(OLD_LEFTOVERS)  # one byte each
    assert local.names() == kept | set(NOT_OURS)
    assert not (local.local / f"work/train-{HASH}").exists()


def test_a_scratch_folder_is_as_old_as_its_newest_file(local: StepResults):
    local.add("count", 7, days=0)
    local.write_local(f"work/train-{HASH}/deep/new", 2)
    local.write_local(f"work/train-{HASH}/old", 50)
    assert [days_since(item.modified) for item in CacheFiles(local.root).index().leftovers] == [2]
    (local.local / f"work/empty-{HASH}").mkdir()
    assert [item.bytes for item in CacheFiles(local.root).index().leftovers] == [0, 2]


def test_an_object_without_manifest_goes_when_it_is_old(made: StepResults):
    key, fingerprint = made.add("count", 7, days=0)
    made.remove(f"manifests/{key}.json")
    made.add("count", 8, days=0)
    assert [stored.fingerprint for stored in CacheFiles(made.root).index().unreferenced] == [fingerprint]
    made.set_age(made.object_of(fingerprint), 29)
    clean(made.root, 30)
    assert made.object_of(fingerprint) in made.names()
    made.set_age(made.object_of(fingerprint), 31)
    clean(made.root, 30)
    assert made.object_of(fingerprint) not in made.names()


def test_pins_are_files_with_their_note(made: StepResults):
    key, _ = made.add("count", 7, days=90)
    files = CacheFiles(made.root)
    assert (files.pinned(), [row.pin for row in files.index().results]) == ([], [None])
    files.pin(key, "für den Bericht")
    assert (files.pinned(), [row.pin for row in files.index().results]) == ([key], ["für den Bericht"])
    clean(made.root, 30)
    assert set(made.manifest_objects()) == {key}
    files.unpin(key)
    clean(made.root, 30)
    assert made.names() == set()


def test_a_result_that_is_used_after_all_stays_with_its_object(made: StepResults):
    """A run takes it from the cache between listing and removal."""
    key, fingerprint = made.add("count", 7, days=90)
    files, cutoff = CacheFiles(made.root), datetime.now(UTC) - timedelta(days=30)
    removal = plan_removal(files.index(), cutoff)
    before = made.names()
    made.set_age(f"manifests/{key}.json", 0)
    assert files.remove(removal, cutoff) == 0
    assert made.names() == before
    made.set_age(f"manifests/{key}.json", 90)
    assert files.remove(removal, cutoff) > 0
    assert made.object_of(fingerprint) not in made.names()


def test_an_object_that_another_result_is_made_of_meanwhile_stays(made: StepResults):
    _, fingerprint = made.add("count", 7, days=90)
    files, cutoff = CacheFiles(made.root), datetime.now(UTC) - timedelta(days=30)
    removal = plan_removal(files.index(), cutoff)
    key, _ = made.add("again", 7, days=0)
    files.remove(removal, cutoff)
    assert made.manifest_objects() == {key: made.object_of(fingerprint)}
    assert made.object_of(fingerprint) in made.names()


def test_a_manifest_cannot_lead_outside_the_root(local: StepResults, here: Path):
    """Kind, digest, URI and key of a manifest are not trusted: only listed objects are removed."""
    precious = here / "precious.parquet"
    precious.write_text("precious")
    local.add("count", 7, days=90)
    for number, (kind, digest) in enumerate([("../..", "precious"), ("scores", "../../../precious")]):
        artifact = {"kind": kind, "uri": str(precious), "digest": digest, "rows": 1}
        body = json.dumps({"recipe": {"inputs": {}}, "artifact": artifact})
        local.write(f"manifests/..{number}.json", body.encode(), 90)
        local.write(f"manifests/*-{number}.json", body.encode(), 90)
    clean(local.root, 30)
    assert precious.read_text() == "precious"


def test_a_name_is_no_pattern(here: Path):
    """fsspec expands * in a path that it removes."""
    made = StepResults(MEMORY, here / "runs")
    key, fingerprint = made.add("count", 7, days=0)
    body = fsspec.filesystem("memory").cat_file(f"/results/manifests/{key}.json")
    made.write("manifests/*.json", body, 90)
    clean(MEMORY, 30)
    assert made.names() == {f"manifests/{key}.json", made.object_of(fingerprint)}


def test_a_link_in_place_of_a_folder_is_removed_without_its_target(local: StepResults, here: Path):
    local.add("count", 7, days=0)
    (here / "target").mkdir()
    (here / "target" / "file").write_text("x")
    (local.local / "work").mkdir()
    os.symlink(here / "target", local.local / f"work/train-{HASH}")
    os.utime(local.local / f"work/train-{HASH}", times=(0, 0), follow_symlinks=False)
    clean(local.root, 30)
    assert not os.path.lexists(local.local / f"work/train-{HASH}")
    assert (here / "target" / "file").exists()


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("none", "none: holds no results of steps; give --root"),
        ("memory://none", "memory://none: holds no results of steps"),
        ("foo://x", "foo://x: Protocol not known: foo; give --root a folder"),
    ],
)
def test_a_root_without_results_is_refused(root: str, words: str):
    with pytest.raises(CacheError) as error:
        CacheFiles(root)
    assert words in str(error.value)


def test_a_damaged_manifest_is_named_and_nothing_is_removed(made: StepResults):
    """Its object would count as one without manifest."""
    made.add("count", 7, days=90)
    made.write(f"manifests/count-{HASH}.json", b"{", 90)
    before = made.names()
    with pytest.raises(CacheError, match=rf"manifests/count-{HASH}\.json: not a manifest \(.*; remove the file"):
        clean(made.root, 0)
    assert made.names() == before


def test_a_folder_that_cannot_be_listed_does_not_count_as_empty(local: StepResults, monkeypatch: pytest.MonkeyPatch):
    """Without manifests, all objects would go."""
    local.add("count", 7, days=90)
    listing = LocalFileSystem.ls

    def refused(self: Any, path: str, detail: bool = False, **more: Any) -> Any:
        if path.endswith("manifests"):
            raise PermissionError(path)
        return listing(self, path, detail, **more)

    monkeypatch.setattr(LocalFileSystem, "ls", refused)
    with pytest.raises(PermissionError):
        CacheFiles(local.root).index()


class Killed(BaseException):
    pass


def kill_at(count: int) -> Any:
    """Raises Killed instead of the removal number `count`."""
    remove, calls = StoredFolder.remove, iter(range(1_000_000))

    def limited(self: StoredFolder, name: str) -> None:
        if next(calls) == count:
            raise Killed
        remove(self, name)

    return patch.object(StoredFolder, "remove", limited)


RESULT = st.tuples(
    st.integers(0, 4),  # content: few, so that results share objects
    st.sets(st.integers(0, 7)),  # made from these earlier results
    st.sampled_from([1, 29, 31, 90]),  # days since its last use
    st.booleans(),  # whether it is pinned
)


@settings(deadline=None, max_examples=60)
@given(st.lists(RESULT, max_size=8), st.integers(0, 30))
def test_remaining_results_are_whole_and_a_killed_removal_is_completed(rows: list[Any], killed_at: int):
    clear_memory()
    made, pinned, recent = StepResults(MEMORY, Path("runs")), set[str](), set[str]()
    made.write("manifests/.keep", b"", 0)
    keys, fingerprints, inputs = list[str](), list[str](), dict[str, set[int]]()
    for number, (content, sources, days, is_pinned) in enumerate(rows):
        earlier = sorted(source for source in sources if source < number)
        key, fingerprint = made.add(f"step{number}", content, days, read=[fingerprints[source] for source in earlier])
        keys.append(key)
        fingerprints.append(fingerprint)
        inputs[key] = set(earlier)
        if is_pinned:
            CacheFiles(MEMORY).pin(key, "")
            pinned.add(key)
        if days < 30:
            recent.add(key)
    files = fsspec.filesystem("memory")
    before = dict(files.store)
    clean(MEMORY, 30)
    once, remaining = made.names(), made.manifest_objects()

    assert set(remaining.values()) == {name for name in made.names() if name.startswith("objects/")}
    assert pinned | recent <= remaining.keys()
    needed, waiting = set(pinned), list(pinned)
    while waiting:
        for source in inputs[waiting.pop()]:
            same = {key for key, name in zip(keys, fingerprints, strict=True) if name == fingerprints[source]}
            waiting += same - needed
            needed |= same
    assert remaining.keys() == recent | needed

    files.store.clear()
    files.store.update(before)
    try:
        with kill_at(killed_at):
            clean(MEMORY, 30)
    except Killed:
        assert set(made.manifest_objects().values()) <= made.names()
    clean(MEMORY, 30)
    assert made.names() == once


@pytest.mark.parametrize("killed_at", range(14))
def test_a_killed_removal_of_a_local_root_is_completed(local: StepResults, killed_at: int):
    """14 removals: list, record and manifest of three results, two objects (one is shared), three leftovers."""
    keys = [local.add("count", content, days=90)[0] for content in (1, 2)]
    keys.append(local.add("again", 1, days=90)[0])
    for key in keys:
        local.write_local(f"set-aside/{key}.jsonl", 90)
    for name in (f"work/train-{HASH}/weights", f"objects/.{'a' * 32}", f"cache/train-{HASH}"):
        local.write_local(name, 90)
    young, fingerprint = local.add("count", 3, days=0)
    with kill_at(killed_at), pytest.raises(Killed):
        clean(local.root, 30)
    assert set(local.manifest_objects().values()) <= local.names()
    clean(local.root, 30)
    assert local.names() == {f"manifests/{young}.json", f"cache/{young}", local.object_of(fingerprint)}
