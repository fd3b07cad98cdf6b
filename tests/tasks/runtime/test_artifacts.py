import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from reasoning.records import Score as Row
from reasoning.records import StageCount, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef, Manifest
from tasks.runtime.object_storage import CONTENTS, ArtifactDamaged, NoStorage, file_system
from tests.services import S3Server
from tests.tasks.runtime.step_results import store_in

COUNT = StageCount(rows_in=2, rows_out=2, dropped={"why": 1}, **Usage().model_dump())
ROWS = [
    Row(problem_id=name, level=None, sample=0, prompt_tokens=1, tokens=2, truncated=False, verdict=Verdict.RIGHT)
    for name in ("a", "b")
]


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.stack)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield {"local": str(tmp_path), "memory": "memory://artifacts"}.get(request.param) or request.getfixturevalue("s3")()
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://artifacts"
    fsspec.filesystem("memory").store.clear()


def objects(root: str) -> list[str]:
    files, path = file_system(root)
    return [name for name in files.find(path) if "objects" in name and not name.endswith(CONTENTS)]


def test_rows_come_back_as_they_were(root: str, tmp_path: Path):
    store = store_in(root, tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    ref.verify()
    assert store.rows(ref, Row) == ROWS
    assert (ref.rows, ref.count) == (2, COUNT)


def test_equal_content_is_one_object(root: str, tmp_path: Path):
    store = store_in(root, tmp_path)
    assert store.publish_rows("scores", ROWS, COUNT) == store.publish_rows("scores", ROWS, COUNT)
    assert len(objects(root)) == 1


def test_the_digest_of_a_folder_includes_file_names(root: str, tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / f"{name}.txt").write_text("same")
    store = store_in(root, tmp_path)
    refs = [store.publish_folder("checkpoint", tmp_path / name, COUNT) for name in ("first", "second")]
    assert refs[0].digest != refs[1].digest
    for ref in refs:
        ref.verify()


def test_a_folder_that_is_moved_is_the_same_artifact(root: str, tmp_path: Path):
    """Into a local store without a copy."""
    refs = []
    for move in (True, False):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text("same")
        refs.append(store_in(root, tmp_path).publish_folder("checkpoint", folder, COUNT, move=move))
        refs[-1].verify()
        assert folder.exists() is not (move and "://" not in root)
    assert refs[0] == refs[1]


@pytest.mark.parametrize("harm", ["change", "delete"])
def test_damage_is_detected_and_repaired(root: str, harm: str, tmp_path: Path):
    ref = store_in(root, tmp_path).publish_rows("scores", ROWS, COUNT)
    files, path = file_system(ref.uri)
    if harm == "change":
        files.pipe_file(path, files.cat_file(path)[:-1] + b"x")
    else:
        files.rm(path)
    if harm == "change" and "://" in root:  # what has its size is read when it is fetched
        ref.verify()
        with pytest.raises(ArtifactDamaged, match="has changed"):
            store_in(root, tmp_path).rows(ref, Row)
    with pytest.raises(ArtifactDamaged):
        ref.verify()
    assert store_in(root, tmp_path).publish_rows("scores", ROWS, COUNT) == ref  # publishing again repairs it
    ref.verify()


def test_a_damaged_download_is_repeated_before_the_object_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
):
    store = store_in(memory, tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    get, calls = store._objects._files.get, []  # type: ignore[attr-defined]

    def damaged_once(sources: list[str], targets: list[str]) -> None:
        get(sources, targets)
        calls.append(targets)
        if len(calls) == 1:
            Path(targets[0]).write_bytes(b"not what was sent")

    monkeypatch.setattr(store._objects._files, "get", damaged_once)  # type: ignore[attr-defined]
    assert store.rows(ref, Row) == ROWS
    assert len(calls) == 2
    ref.verify()


@pytest.mark.stack
def test_a_bucket_that_is_not_there_is_refused_and_not_made(s3: Callable[[], str], tmp_path: Path):
    root = f"{s3()}x/results"
    with pytest.raises(NoStorage, match="does not exist"):
        store_in(root, tmp_path)
    files, _ = file_system(root)
    assert not files.exists(root.removesuffix("/results"))


@pytest.mark.stack
def test_a_download_that_fails_for_a_while_is_repeated(s3: Callable[[], str], s3_server: S3Server, tmp_path: Path):
    store = store_in(s3(), tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    (before,) = (one for one in [store._objects._files.get])  # type: ignore[attr-defined]

    def fails_later(*arguments: Any) -> Any:
        s3_server.failures = 5 if not failed else 0  # as often as the client itself tries
        failed.append(True)
        return before(*arguments)

    failed: list[bool] = []
    store._objects._files.get = fails_later  # type: ignore[attr-defined]
    try:
        assert store.rows(ref, Row) == ROWS
    finally:
        store._objects._files.get = before  # type: ignore[attr-defined]
    assert len(failed) == 2


def test_an_interrupted_publication_leaves_no_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_in(str(tmp_path), tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.publish_rows("scores", ROWS, COUNT)
    assert all(Path(name).name.startswith(".") for name in objects(str(tmp_path)))


PUBLISHER = """
import sys
from pathlib import Path
from tests.tasks.runtime.step_results import store_in
from tests.tasks.runtime.test_artifacts import COUNT
folder = Path(sys.argv[1]) / "model"
folder.mkdir(exist_ok=True)
store = store_in(sys.argv[1], Path(sys.argv[1]))
for number in range(10_000):
    for part in ("config", "weights"):
        (folder / part).write_bytes(bytes([number % 256]) * 300_000)
    store.record(str(number % 7), {}, store.publish_folder("checkpoint", folder, COUNT))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 12])
def test_after_a_kill_every_final_name_is_complete(tmp_path: Path, after: int):
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(tmp_path)], stdout=subprocess.PIPE)
    assert publisher.stdout
    for _ in range(after):
        assert publisher.stdout.readline()
    publisher.kill()
    publisher.communicate()
    published = [path for path in (tmp_path / "objects" / "checkpoint").iterdir() if not path.name.startswith(".")]
    assert len(published) >= after
    for path in published:
        ArtifactRef(kind="checkpoint", uri=str(path), digest=path.name, rows=1).verify()
    for manifest in (tmp_path / "manifests").glob("[!.]*.json"):
        ArtifactRef.model_validate(json.loads(manifest.read_text())["artifact"]).verify()


def test_when_another_run_publishes_first_its_object_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("same")
    store = store_in(str(tmp_path / "root"), tmp_path)
    ref = store.publish_folder("checkpoint", tmp_path / "model", COUNT)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as if the object appeared between check and move
    assert store.publish_folder("checkpoint", tmp_path / "model", COUNT) == ref
    ref.verify()


def manifest(root: str) -> tuple[Manifest, datetime]:
    """The manifest of key `k` and its modification time."""
    files, path = file_system(f"{root}/manifests/k.json")
    return Manifest.model_validate_json(files.cat_file(path)), files.modified(path)


def set_age(root: str, days: float) -> None:
    files, path = file_system(f"{root}/manifests/k.json")
    moment = datetime.now(UTC) - timedelta(days=days)
    if root.startswith("memory"):
        files.store[path].modified = moment
    elif not root.startswith("s3"):  # where times cannot be set
        os.utime(path, times=(moment.timestamp(), moment.timestamp()))


def test_the_modification_time_of_a_manifest_is_its_last_use(root: str, tmp_path: Path):
    store = store_in(root, tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    store.record("k", {"step": "s", "share": 0.1}, ref)
    written, _ = manifest(root)
    set_age(root, 9)
    store.record("k", {"step": "s", "share": 0.1}, ref)  # a cache hit
    again, last_used = manifest(root)
    assert again == written
    assert datetime.now(UTC) - last_used < timedelta(minutes=1)


def test_a_manifest_of_an_earlier_version_stays_as_it_is(root: str, tmp_path: Path):
    store = store_in(root, tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    store.record("k", {"step": "s"}, ref)
    files, path = file_system(f"{root}/manifests/k.json")
    files.pipe_file(path, json.dumps({"recipe": {"step": "s"}, "artifact": ref.model_dump(mode="json")}).encode())
    set_age(root, 9)
    store.record("k", {"step": "s"}, ref)
    found, last_used = manifest(root)
    assert found.made is None  # not known
    assert datetime.now(UTC) - last_used < timedelta(minutes=1)


@pytest.mark.parametrize("before", [b"{", b"", b"\xff", b"{}"])
def test_another_result_or_a_damaged_manifest_is_written_anew(root: str, before: bytes, tmp_path: Path):
    store = store_in(root, tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    other = store.publish_rows("scores", ROWS[:1], COUNT)
    store.record("k", {"step": "s"}, other)
    store.record("k", {"step": "s"}, ref)
    assert manifest(root)[0].artifact == ref
    files, path = file_system(f"{root}/manifests/k.json")
    assert store.recorded("k") == ref
    files.pipe_file(path, before)
    assert store.recorded("k") is None
    store.record("k", {"step": "s"}, ref)
    assert manifest(root)[0].artifact == ref
    files.rm(ref.uri)
    assert store.recorded("k") is None
    assert store.recorded("never made") is None


def test_a_manifest_of_another_user_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its time cannot be set, but it can be replaced."""
    store = store_in(str(tmp_path), tmp_path)
    ref = store.publish_rows("scores", ROWS, COUNT)
    store.record("k", {"step": "s"}, ref)
    set_age(str(tmp_path), 9)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", refused)
    store.record("k", {"step": "s"}, ref)
    assert datetime.now(UTC) - manifest(str(tmp_path))[1] < timedelta(minutes=1)


def test_a_reference_survives_json(tmp_path: Path):
    ref = store_in(str(tmp_path), tmp_path).publish_rows("scores", ROWS, COUNT)
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref
