"""Commands over the results of steps: list, explain, remove, pin."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

from rich.filesize import decimal
from rich.table import Table

from tasks.reports.layout import console, plain, strip_control_chars
from tasks.runtime.cache_files import CacheFiles
from tasks.runtime.cache_index import (
    VERSION,
    CachedResult,
    CacheError,
    CacheIndex,
    LeftoverKind,
    RecipeChange,
    Removal,
    leaves,
    match_key,
    plan_models_removal,
    plan_removal,
    recipe_changes,
)
from tasks.runtime.run_directory import keys_of_run

DIGITS = 12
"""Hex digits of a digest that are shown."""
NUMBERS = {"rows", "size", "results", "objects", "number"}
"""Columns that are aligned to the right."""
P = ParamSpec("P")


def _with_readable_errors(command: Callable[Concatenate[str, P], None]) -> Callable[Concatenate[str, P], None]:
    """Raises a CacheError instead of an OSError of the storage."""

    @wraps(command)
    def run(root: str, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            command(root, *arguments, **named)
        except OSError as error:
            raise CacheError(f"{root}: {error}; give this user access to it, or another --root") from error

    return run


@_with_readable_errors
def list_results(root: str, step: str) -> None:
    """Prints the results of `step`, or of all steps, their totals, and what else lies in `root`. Raises CacheError."""
    index = CacheFiles(root).index()
    shown = index.of_step(step) if step else list(index.results)
    if step and not shown:
        raise CacheError(f"{root}: no results of step {step!r}; steps: {', '.join(_steps(index)) or 'none'}")
    rows = [_listed(index, result) for result in sorted(shown, key=lambda row: (row.step, -row.last_used.timestamp()))]
    _print(["step", "key", "kind", "rows", "size", "last used (UTC)", "pinned", "whole"], rows)
    _print(["kind", "results", "objects", "size"], _totals(index, shown))
    if not step:
        _print(["not part of a result", "number", "size"], _others(index))


def _steps(index: CacheIndex) -> list[str]:
    return sorted({result.step for result in index.results})


def _listed(index: CacheIndex, result: CachedResult) -> list[str]:
    return [
        result.step,
        result.short_hash,
        result.artifact.kind,
        f"{result.artifact.rows:,}",
        _size(index.object_bytes.get(result.fingerprint, 0)),
        _time(result.last_used),
        _pin(result),
        "yes" if index.is_whole(result) else "no",
    ]


def _totals(index: CacheIndex, shown: Sequence[CachedResult]) -> list[list[str]]:
    """A row for each kind, and one for all."""
    kinds = sorted({result.artifact.kind for result in shown})
    groups = {kind: [result for result in shown if result.artifact.kind == kind] for kind in kinds} | {"all": shown}
    return [
        [
            kind,
            f"{len(group):,}",
            f"{len({result.fingerprint for result in group if index.is_whole(result)}):,}",
            _size(index.total_bytes(group)),
        ]
        for kind, group in groups.items()
    ]


def _others(index: CacheIndex) -> list[list[str]]:
    groups = {str(kind): [item for item in index.leftovers if item.kind == kind] for kind in LeftoverKind}
    groups |= {"object without manifest": index.unreferenced}
    return [[name, f"{len(group):,}", _size(sum(item.bytes for item in group))] for name, group in groups.items()]


@_with_readable_errors
def explain(root: str, what: str, against: str) -> None:
    """Prints a result by its key, or how the newest result of a step differs from the one before. `against`: the key
    of another result to compare with. Raises CacheError."""
    index = CacheFiles(root).index()
    results = index.of_step(what) or [index.result(what)]
    others = [index.result(against)] if against else results[1:]
    if others:
        _print_changes(index, others[0], results[0])
    else:
        _print_result(index, results[0])
        if results[0].step == what:
            _say(f"this is the only result of {what}: there is none to compare it with")


def _print_changes(index: CacheIndex, before: CachedResult, now: CachedResult) -> None:
    _say(f"before: {before.key}, {_dates(before)}\nnow:    {now.key}, {_dates(now)}")
    changes = recipe_changes(before.recipe, now.recipe)
    settings = [change for change in changes if change.path != VERSION]
    if len(settings) < len(changes):
        _say("the code changed: that of the step, or the version of a library that its result depends on")
    if settings:
        _print(["changed", "before", "now"], [_changed(index, change) for change in settings])
    if not changes:
        _say("the recipes are the same")


def _changed(index: CacheIndex, change: RecipeChange) -> list[str]:
    return [".".join(change.path), _value(index, change.before), _value(index, change.now)]


def _print_result(index: CacheIndex, result: CachedResult) -> None:
    artifact, same = result.artifact, index.results_by_fingerprint[result.fingerprint]
    state = "whole" if index.is_whole(result) else "its object is missing: the next run makes it again"
    rows = [
        ["key", result.key],
        ["dates", _dates(result)],
        ["pinned", _pin(result) or "no"],
        ["artifact", result.fingerprint],
        ["content", f"{artifact.rows:,} rows, {_size(index.object_bytes.get(result.fingerprint, 0))}, {state}"],
        ["location", artifact.uri],
        ["also made by", _keys(row for row in same if row is not result)],
        ["used by", _keys(index.users(result))],
    ]
    _print(["result", ""], rows)
    recipe = [[".".join(path), _value(index, value)] for path, value in leaves(dict(result.recipe))]
    _print(["recipe", ""], recipe)


def _keys(results: Iterable[CachedResult]) -> str:
    return "\n".join(sorted(result.key for result in results)) or "none"


def _dates(result: CachedResult) -> str:
    made = f"made {_time(result.made)}, " if result.made else ""
    return f"{made}last used {_time(result.last_used)} UTC"


def _value(index: CacheIndex, value: object) -> str:
    """A value of a recipe. An artifact is shown with the results that are this artifact."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if made_by := index.results_by_fingerprint.get(value):
        kind, _, digest = value.partition(":")
        return f"{kind}:{digest[:DIGITS]} ({', '.join(f'{row.step} {row.short_hash}' for row in made_by)})"
    return str(value)


@_with_readable_errors
def collect_garbage(root: str, days: float, models: int | None, dry_run: bool) -> None:
    """Removes what was not used for `days` days and prints it. `models`: removes models alone, and keeps so many of
    them. `dry_run`: only prints it. Raises CacheError."""
    files, cutoff = CacheFiles(root), datetime.now(UTC) - timedelta(days=days)
    index = files.index()
    removal = plan_removal(index, cutoff) if models is None else plan_models_removal(index, cutoff, models)
    if any(removal):
        _print(["to remove", "name", "last used or changed (UTC)", "size"], _removed(removal))
    freed = removal.bytes if dry_run else files.remove(removal, cutoff)
    _say(f"{_size(freed)} {'would be freed' if dry_run else 'freed'}")


def _removed(removal: Removal) -> list[list[str]]:
    """A row for each result, with the size of its object if that goes with it, and for each other thing."""
    objects, rows = {stored.fingerprint: stored for stored in removal.objects}, []
    for result in removal.results:
        stored = objects.pop(result.fingerprint, None)
        what, size = ("result and object", stored.bytes) if stored else ("result", 0)
        rows.append([what, result.key, _time(result.last_used), _size(result.bytes + size)])
    for stored in objects.values():
        rows.append(["object without manifest", stored.fingerprint, _time(stored.modified), _size(stored.bytes)])
    for leftover in removal.leftovers:
        name = f"{leftover.folder}/{leftover.name}"
        rows.append([str(leftover.kind), name, _time(leftover.modified), _size(leftover.bytes)])
    return rows


@_with_readable_errors
def pin(root: str, what: str, note: str) -> None:
    """Pins a result by its key, or all results of a run by its folder. Raises CacheError, NoRunError."""
    files = CacheFiles(root)
    keys = _named(what, [result.key for result in files.index().results])
    if not keys:
        raise CacheError(f"{what}: none of its results is in {root}; give --root the run's storage.root")
    for key in keys:
        files.pin(key, note)
    of_run = keys_of_run(Path(what)) if _is_run(what) else []
    _say(f"pinned: {len(keys)} of {len(of_run)} results" if of_run else f"pinned: {keys[0]}")


@_with_readable_errors
def unpin(root: str, what: str) -> None:
    """Removes the pin of a key, or all pins of a run's results. Raises CacheError, NoRunError."""
    files = CacheFiles(root)
    keys = _named(what, files.pinned(), "pinned key")
    if not keys:
        raise CacheError(f"{what}: none of its results is pinned in {root}")
    for key in keys:
        files.unpin(key)
    _say(f"pins removed: {len(keys)}")


def _is_run(what: str) -> bool:
    return Path(what).is_dir()


def _named(what: str, keys: Collection[str], kind: str = "key") -> list[str]:
    """Those of `keys` that are meant by a run's folder or by the beginning of a key. Raises CacheError, NoRunError."""
    if _is_run(what):
        return [key for key in keys_of_run(Path(what)) if key in keys]
    return [match_key(what, keys, kind)]


def _say(text: str) -> None:
    print(strip_control_chars(text))


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    console().print(table)


def _pin(result: CachedResult) -> str:
    return "" if result.pin is None else result.pin or "yes"


def _size(count: int) -> str:
    return decimal(count)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
