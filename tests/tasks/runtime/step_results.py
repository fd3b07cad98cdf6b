"""A root with results of steps, whose ages are set by the test."""

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec

from reasoning.records import Score, StageCount, Usage, Verdict
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.fetched import FetchedFiles
from tasks.runtime.object_storage import PROBE, contents_name

COUNT = StageCount(rows_in=1, rows_out=1, dropped={}, **Usage().model_dump())


def key_of(recipe: dict[str, Any]) -> str:
    """As `tasks.runtime.caching.key_of`, which imports Prefect."""
    return f"{recipe['step']}-{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:40]}"


def store_in(root: str, local: Path) -> ArtifactStore:
    """`local`: where copies of remote artifacts go."""
    return ArtifactStore(root, FetchedFiles(local / "fetched", 1e9))


class StepResults:
    """Makes results in `root`. `local`: where the root's local folders are."""

    def __init__(self, root: str, local: Path):
        self.root, self.local = root, local
        self._store = store_in(root, local)
        self._files, self._path = fsspec.url_to_fs(root)

    def add(self, step: str, content: int, days: float, *, version: str = "1", **inputs: Any) -> tuple[str, str]:
        """A result of one row, with Prefect's record where the root is local. Returns its key and fingerprint.

        `content`: rows with equal content are one object. Inputs are JSON values; those of artifacts are fingerprints.
        """
        row = Score(
            problem_id="a",
            level=None,
            sample=0,
            prompt_tokens=1,
            tokens=content,
            truncated=False,
            verdict=Verdict.RIGHT,
        )
        ref = self._store.publish_rows("scores", [row], COUNT)
        recipe = {"step": step, "version": version, "inputs": {"content": content, **inputs}}
        key = key_of(recipe)
        self._store.record(key, recipe, ref)
        if self._store.is_local:
            self.write_local(f"cache/{key}", days)
        self.set_age(f"manifests/{key}.json", days)
        self.set_age(self.object_name(ref), 1000)  # not after any use of it
        return key, ref.fingerprint()

    def object_name(self, ref: ArtifactRef) -> str:
        return f"objects/{ref.kind}/{ref.digest}.parquet"

    def object_of(self, fingerprint: str) -> str:
        kind, _, digest = fingerprint.partition(":")
        return f"objects/{kind}/{digest}.parquet"

    def set_age(self, name: str, days: float) -> None:
        """As if the file was last modified this many days ago."""
        moment = datetime.now(UTC) - timedelta(days=days)
        if self._store.is_local:
            os.utime(Path(self.root) / name, times=(moment.timestamp(), moment.timestamp()))
        else:
            self._files.store[f"{self._path}/{name}"].modified = moment

    def write(self, name: str, content: bytes, days: float) -> None:
        path = f"{self._path}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, content)
        self.set_age(name, days)

    def write_local(self, name: str, days: float, content: str = "x") -> None:
        """A file under the local root; the folders that lead to it get its age, too."""
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        moment = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        for part in (path, *path.parents):
            if part == self.local:
                break
            os.utime(part, times=(moment, moment))

    def remove(self, name: str) -> None:
        self._files.rm(f"{self._path}/{name}")

    def manifest_objects(self) -> dict[str, str]:
        """By the key of each manifest, the name of its object."""
        names = [name for name in self.names() if name.startswith("manifests/") and name.endswith(".json")]
        refs = {Path(name).stem: json.loads(self._files.cat_file(f"{self._path}/{name}"))["artifact"] for name in names}
        return {key: f"objects/{ref['kind']}/{ref['digest']}.parquet" for key, ref in refs.items()}

    def names(self) -> set[str]:
        """All files of the root, and of its local counterpart; without the lists of what remote objects hold, unless
        they are left alone."""
        found = {path.removeprefix(self._path).lstrip("/") for path in self._files.find(self._path)}
        found -= {PROBE, *(contents_name(name) for name in found)}
        here = {str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()}
        return found | here
