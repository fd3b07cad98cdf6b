"""Results of steps as data: which there are, how two recipes differ, what a clean-up removes. No file is touched.

`tasks/runtime/cache_files.py` reads a root into a `CacheIndex` and carries out a `Removal`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from conf.errors import ReadableError
from tasks.runtime.artifacts import ArtifactRef

MAX_CANDIDATES = 10
"""Keys that an error lists."""
HASH_SHOWN = 8
"""Hex digits of a key in a table."""
VERSION = ("version",)
"""Path of the code version in a recipe."""


class CacheError(ReadableError):
    """A key or step that is not there, or a root that cannot be read."""


CHECKPOINT = "checkpoint"
"""Kind of the artifacts that are trained models."""


class LeftoverKind(StrEnum):
    """What lies beside the results."""

    SCRATCH = "scratch folder"
    """Unfinished work, from which a repeated step resumes."""
    TEMPORARY = "temporary name"
    """A file or folder that was not written to its end, or was damaged and replaced."""
    RECORD = "record without manifest"
    """Prefect's record of a result; the run was killed before it wrote the manifest."""
    LIST = "list without manifest"
    """Skipped rows of a step that did not finish."""


@dataclass(frozen=True)
class CachedResult:
    """The result of a step."""

    key: str
    recipe: Mapping[str, Any]
    artifact: ArtifactRef
    made: datetime | None
    """When it was recorded first; None where an earlier version did."""
    last_used: datetime
    """When a run last made it or took it from the cache."""
    pin: str | None = None
    """The pin's note; None without a pin."""
    bytes: int = 0
    """Size of manifest, Prefect's record and list of skipped rows; the object is not included."""

    @property
    def step(self) -> str:
        return self.key.rpartition("-")[0]

    @property
    def short_hash(self) -> str:
        return self.key.rpartition("-")[2][:HASH_SHOWN]

    @property
    def fingerprint(self) -> str:
        return self.artifact.fingerprint()


class StoredObject(NamedTuple):
    """A file or folder `objects/<kind>/<name>`."""

    kind: str
    name: str
    """Digest, with .parquet where it is a file of rows."""
    bytes: int
    modified: datetime

    @property
    def fingerprint(self) -> str:
        return f"{self.kind}:{self.name.removesuffix('.parquet')}"


class Leftover(NamedTuple):
    """A file or folder that belongs to no finished result."""

    kind: LeftoverKind
    folder: str
    """Name of the folder that it lies in."""
    name: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class CacheIndex:
    """Everything that a root holds."""

    results: Sequence[CachedResult]
    objects: Sequence[StoredObject] = ()
    leftovers: Sequence[Leftover] = ()

    @cached_property
    def results_by_fingerprint(self) -> dict[str, list[CachedResult]]:
        """Several results may be one artifact."""
        found: dict[str, list[CachedResult]] = {}
        for result in self.results:
            found.setdefault(result.fingerprint, []).append(result)
        return found

    @cached_property
    def object_bytes(self) -> dict[str, int]:
        """Sizes of the objects, by fingerprint."""
        return {stored.fingerprint: stored.bytes for stored in self.objects}

    @property
    def unreferenced(self) -> list[StoredObject]:
        """Objects without a manifest: a run or a clean-up was killed, or a run is about to write the manifest."""
        return [stored for stored in self.objects if stored.fingerprint not in self.results_by_fingerprint]

    def is_whole(self, result: CachedResult) -> bool:
        """Whether the object is there. Its content is not checked; a run checks it when it takes the result."""
        return result.fingerprint in self.object_bytes

    def total_bytes(self, results: Iterable[CachedResult]) -> int:
        """Size of the objects of `results`; an object of several results counts once."""
        return sum(self.object_bytes.get(name, 0) for name in {result.fingerprint for result in results})

    def result(self, text: str) -> CachedResult:
        """The result whose key or hash begins with `text`. Raises CacheError."""
        by_key = {result.key: result for result in self.results}
        return by_key[match_key(text, by_key)]

    def of_step(self, step: str) -> list[CachedResult]:
        """Results of a step, the newest first. Those without a date come last, in the order of their last use."""
        found = [result for result in self.results if result.step == step]
        return sorted(found, key=_age, reverse=True)

    def users(self, result: CachedResult) -> list[CachedResult]:
        """The results that were made from this one."""
        return [user for user in self.results if result.fingerprint in input_texts(user.recipe)]

    def with_inputs(self, results: Iterable[CachedResult]) -> set[str]:
        """Keys of `results` and of all results that they were made from, directly or not."""
        waiting, found = list(results), set[str]()
        while waiting:
            result = waiting.pop()
            if result.key not in found:
                found.add(result.key)
                for name in input_texts(result.recipe):
                    waiting += self.results_by_fingerprint.get(name, [])
        return found


def _age(result: CachedResult) -> tuple[datetime, datetime]:
    return result.made or datetime.min.replace(tzinfo=UTC), result.last_used


def match_key(text: str, keys: Collection[str], what: str = "key") -> str:
    """The only one of `keys` that begins with `text`, or whose hash does. `what` names the keys. Raises CacheError."""
    if text in keys:
        return text
    found = sorted(key for key in keys if key.startswith(text) or key.rpartition("-")[2].startswith(text))
    if not found:
        raise CacheError(
            f"no {what} begins with {text!r}; `brevity cache ls` lists steps and keys, and a run is named by its folder"
        )
    if len(found) > 1:
        more = f" and {len(found) - MAX_CANDIDATES} more" if len(found) > MAX_CANDIDATES else ""
        raise CacheError(
            f"{len(found)} {what}s begin with {text!r}; give more of one: {', '.join(found[:MAX_CANDIDATES])}{more}"
        )
    return found[0]


Path = tuple[str, ...]
"""Names of the nested dicts' keys and positions in lists that lead to a value."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values within nested dicts and lists, with their paths. An empty dict or list is a value."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    if not parts:
        yield path, value
    for name, part in parts:
        yield from leaves(part, (*path, str(name)))


def input_texts(recipe: Mapping[str, Any]) -> set[str]:
    """All texts among a recipe's inputs. Those of artifacts are fingerprints."""
    return {value for _, value in leaves(recipe.get("inputs")) if isinstance(value, str)}


class Absent(StrEnum):
    """Stands for the value of a setting that a recipe does not have."""

    ABSENT = "(absent)"


class RecipeChange(NamedTuple):
    """A value that differs between two recipes."""

    path: Path
    before: Any
    now: Any


def recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[RecipeChange]:
    """The differing values, in the order of the recipes. Values differ where their JSON does, as it does in a key."""
    old, new = dict(leaves(dict(before))), dict(leaves(dict(now)))
    both = [(path, old.get(path, Absent.ABSENT), new.get(path, Absent.ABSENT)) for path in {**old, **new}]
    return [RecipeChange(*change) for change in both if _differs(change[1], change[2])]


def _differs(before: Any, now: Any) -> bool:
    return isinstance(before, Absent) != isinstance(now, Absent) or json.dumps(before) != json.dumps(now)


class Removal(NamedTuple):
    """What a clean-up removes."""

    results: Sequence[CachedResult]
    objects: Sequence[StoredObject]
    leftovers: Sequence[Leftover]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in (*self.results, *self.objects, *self.leftovers))


def plan_models_removal(index: CacheIndex, cutoff: datetime, kept: int) -> Removal:
    """As `plan_removal`, of trained models alone, and of those all but the `kept` that were used last. Pinned ones
    count among these."""
    removal = plan_removal(index, cutoff)
    models = [result for result in index.results if result.artifact.kind == CHECKPOINT]
    newest = dict.fromkeys(one.fingerprint for one in sorted(models, key=lambda one: one.last_used, reverse=True))
    kept_models = set(list(newest)[:kept])
    gone = [one for one in removal.results if one.artifact.kind == CHECKPOINT and one.fingerprint not in kept_models]
    lost = {one.fingerprint for one in gone}
    return Removal(gone, [stored for stored in removal.objects if stored.fingerprint in lost], [])


def plan_removal(index: CacheIndex, cutoff: datetime) -> Removal:
    """Removes what was not used since `cutoff`.

    Pinned results stay, with all results that they were made from. What an unpinned result was made from does not
    stay on its account. An object goes when no remaining result is made of it: with its last result, or, where it has
    none, when it is older than `cutoff`.
    """
    pinned = index.with_inputs(result for result in index.results if result.pin is not None)
    gone = [result for result in index.results if result.last_used < cutoff and result.key not in pinned]
    kept = {result.key for result in index.results} - {result.key for result in gone}
    needed = {result.fingerprint for result in index.results if result.key in kept}
    lost = {result.fingerprint for result in gone}
    objects = [
        stored
        for stored in index.objects
        if stored.fingerprint not in needed and (stored.fingerprint in lost or stored.modified < cutoff)
    ]
    return Removal(gone, objects, [leftover for leftover in index.leftovers if leftover.modified < cutoff])
