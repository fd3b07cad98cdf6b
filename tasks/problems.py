"""Problems from their source: the story world, a file, or the Hugging Face hub.

Knows: files, the hub, which rows to set aside, how long prompts are. Must not know: engines, methods.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import ReadableError
from conf.settings import Decontamination, Hub, NoDecontamination, ProblemFile, Problems, Stories
from models.dialogues import prompt_ids
from reasoning.contamination import METHOD_VERSION as CONTAMINATION_VERSION
from reasoning.contamination import Words, matches, without_doubles, words
from reasoning.problem_rows import problem_of
from reasoning.records import BadRow, Match, Problem, TextPart
from reasoning.stories import METHOD_VERSION, Split, Story, draw_stories
from reasoning.verifier import METHOD_VERSION as VERIFIER_VERSION
from tasks.artifacts import ArtifactRef, content_digest
from tasks.caching import step
from tasks.workplace import Workplace

VERSION = f"2.{VERIFIER_VERSION}"
CHUNK = 4096
"""Rows that are read and checked at one time: a data set on the hub may have millions, of which a run wants some."""


class ProblemsRefused(ReadableError):
    """A source that cannot be used, with what is wrong, where, and what to do."""


class Sources(NamedTuple):
    """Rows of Problem, of each source that a pipeline reads."""

    train: ArtifactRef
    exams: dict[str, ArtifactRef]
    """By name; the first is the main one."""


class Row(NamedTuple):
    place: str
    content: Any
    """The row as it was read, or a BadRow where it could not be."""


def problems_from(place: Workplace, source: Problems, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. `split` and `seed` choose among stories; other sources are what they are.

    Raises ProblemsRefused.
    """
    if isinstance(source, Stories):
        return draw_problems(place, source=source, split=split, seed=seed)
    if isinstance(source, Hub):
        return load_hub(place, source=source, commit=_commit(source))
    return load_file(place, file=_file(source.path), source=source)


def draw_sources(place: Workplace, problems: Problems, exams: Mapping[str, Problems], seed: int) -> Sources:
    """All of them, before any model is looked for. Raises ProblemsRefused."""
    drawn = {name: problems_from(place, source, Split.BENCHMARK, seed) for name, source in exams.items()}
    return Sources(problems_from(place, problems, Split.TRAIN, seed), drawn)


def fitting_sources(
    place: Workplace, sources: Sources, models: Sequence[ArtifactRef], room: int, roles: tuple[str, ...] = ()
) -> Sources:
    """`sources` without what is too long for one of the models that are to read it. Raises ProblemsRefused."""

    def fitting(name: str, drawn: ArtifactRef) -> ArtifactRef:
        return fitting_problems(place, name, drawn, models, room, roles)

    exams = {name: fitting(repr(name), exam) for name, exam in sources.exams.items()}
    return Sources(fitting("problems", sources.train), exams)


def fitting_problems(
    place: Workplace, name: str, drawn: ArtifactRef, models: Sequence[ArtifactRef], room: int,
    roles: tuple[str, ...] = (),
) -> ArtifactRef:  # fmt: skip
    """`drawn` without what is too long; `name` is the source's, for a person. Raises ProblemsRefused."""
    fitting = drawn
    for model in models:
        fitting = fit_problems(place, model=model, problems=fitting, room=room, roles=roles)
    if long := drawn.rows - fitting.rows:
        place.warn(f"{name}: {long} of {drawn.rows} are left out: with more than {room} tokens they leave no room in "
                   f"engine.context for what is to follow them")  # fmt: skip
    return fitting


def story_problem(story: Story, split: Split, seed: int, index: int) -> Problem:
    return Problem(
        id=f"story-{split}-{seed}-{index}", prompt=(TextPart(text=story.text),), answer=str(story.answer),
        level=story.level,
    )  # fmt: skip


@step(version=f"1.{METHOD_VERSION}")
def draw_problems(place: Workplace, source: Stories, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. No two splits can share one, whatever the seeds."""
    started = time.monotonic()
    stories = draw_stories(split, seed, source.count, source.levels)
    rows = [story_problem(story, split, seed, index) for index, story in enumerate(stories)]
    return place.publish("problems", rows, rows_in=len(rows), started=started)


@step(version=VERSION)
def load_file(place: Workplace, file: ArtifactRef, source: ProblemFile) -> ArtifactRef:
    """Rows of Problem from `file`, whose content is what the cache key holds."""
    return _publish(place, source, file.uri, _rows_of_file(file.uri))


@step(version=VERSION)
def load_hub(place: Workplace, source: Hub, commit: str) -> ArtifactRef:
    """Rows of Problem from one commit of a data set on the hub."""
    from datasets import load_dataset

    try:
        parts = {
            subset: load_dataset(source.name, subset or None, split=source.split, revision=commit)
            for subset in source.subsets or ("",)
        }
    except Exception as error:  # the hub's client raises many kinds; all mean that the data set is not to be had
        raise _not_to_be_had(source, error) from None
    named = (
        Row(f"{source.name}/{part}[{index}]", row) for part, rows in parts.items() for index, row in enumerate(rows)
    )
    return _publish(place, source, source.name, named)


@step(version="1")
def fit_problems(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, room: int, roles: tuple[str, ...]
) -> ArtifactRef:  # fmt: skip
    """Rows of Problem: those whose prompt, by itself and to each of the `roles`, takes at most `room` tokens. One that
    no engine can serve would end a run wherever it comes up. Raises ProblemsRefused when none is left."""
    started = time.monotonic()
    checkpoint, rows = place.checkpoint(model), place.rows(problems, Problem)
    prompts = [[checkpoint.prompt_ids(row), *(prompt_ids(checkpoint, row, role) for role in roles)] for row in rows]
    kept = [row for row, shown in zip(rows, prompts, strict=True) if max(map(len, shown)) <= room]
    if not kept:
        raise ProblemsRefused(f"all {len(rows)} problems are longer than {room} tokens; raise engine.context")
    dropped = Counter({"prompt-too-long": len(rows) - len(kept)})
    return place.publish("problems", kept, rows_in=len(rows), dropped=dict(+dropped), started=started)


def by_id(place: Workplace, problems: ArtifactRef) -> dict[str, Problem]:
    return {problem.id: problem for problem in place.rows(problems, Problem)}


def prompts_of(place: Workplace, model: ArtifactRef, problems: ArtifactRef) -> dict[str, tuple[int, ...]]:
    """Each problem's prompt in the model's token ids, by problem id."""
    checkpoint = place.checkpoint(model)
    return {name: checkpoint.prompt_ids(problem) for name, problem in by_id(place, problems).items()}


def clean_problems(place: Workplace, how: Decontamination, sources: Sources, seed: int) -> ArtifactRef:
    """Those to train on, without doubles and without what benchmarks hold, too: those examined, and those of `how`.

    Raises ProblemsRefused when nothing is left.
    """
    if isinstance(how, NoDecontamination):
        place.warn(f"problems were not compared with the benchmarks: {how.reason}")
        return sources.train
    others = {f"against {index}": problems_from(place, source, Split.BENCHMARK, seed)
              for index, source in enumerate(how.against, start=1)}  # fmt: skip
    benchmarks = {**sources.exams, **others}
    found = find_overlap(
        place, problems=sources.train, benchmarks=list(benchmarks.values()), names=list(benchmarks), words=how.words,
        share=how.share,
    )  # fmt: skip
    if found.rows:
        place.warn(
            f"{found.rows} problems stand in a benchmark, too, and are removed; they are listed in the artifact of "
            f"find-overlap, {found.digest[:12]}"
        )
    return drop_problems(place, problems=sources.train, matches=found)


@step(version=CONTAMINATION_VERSION)
def find_overlap(
    place: Workplace, problems: ArtifactRef, benchmarks: Sequence[ArtifactRef], names: Sequence[str], words: int,
    share: float,
) -> ArtifactRef:  # fmt: skip
    """Rows of Match: problems that one of the benchmarks holds, too."""
    started = time.monotonic()
    held = {name: place.rows(exam, Problem) for name, exam in zip(names, benchmarks, strict=True)}
    rows = place.rows(problems, Problem)
    found = matches(rows, held, words, share)
    counts = {f"compared with {name}": len(group) for name, group in held.items()}
    return place.publish("matches", found, rows_in=len(rows), started=started, counts=counts)


@step(version=CONTAMINATION_VERSION)
def drop_problems(place: Workplace, problems: ArtifactRef, matches: ArtifactRef) -> ArtifactRef:
    """Rows of Problem: those without a match, each once. Raises ProblemsRefused when none is left."""
    started = time.monotonic()
    rows, held = place.rows(problems, Problem), {row.problem_id for row in place.rows(matches, Match)}
    clean = [row for row in rows if row.id not in held]
    kept = without_doubles(clean)
    if not kept:
        raise ProblemsRefused(
            f"all {len(rows)} problems stand in a benchmark, too (listed in {matches.uri}); take others for problems"
        )
    dropped = Counter({"in-a-benchmark": len(rows) - len(clean), "double": len(clean) - len(kept)})
    return place.publish("problems", kept, rows_in=len(rows), dropped=dict(+dropped), started=started)


def _commit(source: Hub) -> str:
    """The commit that the revision names now."""
    from huggingface_hub import HfApi

    if re.fullmatch("[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        return str(HfApi().dataset_info(source.name, revision=source.revision).sha)
    except Exception as error:
        raise _not_to_be_had(source, error) from None


def _not_to_be_had(source: Hub, error: Exception) -> ProblemsRefused:
    return ProblemsRefused(
        f"{source.name} at {source.revision!r}, split {source.split!r}: {error}. Check the source's name, subset, "
        f"split and revision, and whether this machine may reach the hub"
    )


def _file(path: str) -> ArtifactRef:
    """The file as a reference by content."""
    if not path.endswith((".jsonl", ".parquet")):
        raise ProblemsRefused(
            f"{path}: problems come from .jsonl or .parquet files; convert it and change problems.path"
        )
    try:
        return ArtifactRef(kind="file", uri=path, digest=content_digest(path), rows=0)
    except FileNotFoundError:
        raise ProblemsRefused(f"{path}: no such file; correct problems.path") from None


def _rows_of_file(path: str) -> Iterator[Row]:
    if path.endswith(".parquet"):
        yield from _rows_of_parquet(path)
        return
    with fsspec.open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Row(f"{path}:{number}", _parsed(line, f"{path}:{number}"))


def _rows_of_parquet(path: str) -> Iterator[Row]:
    try:
        with fsspec.open(path, "rb") as file:
            rows = pq.read_table(file).to_pylist()
    except pa.ArrowInvalid as error:
        raise ProblemsRefused(f"{path}: not a Parquet file ({error}); write it again") from None
    yield from (Row(f"{path}, row {index}", row) for index, row in enumerate(rows))


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        return BadRow(place=where, id=None, reason="not-utf-8", detail="the line is not UTF-8; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRow(place=where, id=None, reason="malformed-json", detail=f"not JSON ({error}); correct the line")


def _publish(place: Workplace, source: ProblemFile | Hub, name: str, rows: Iterator[Row]) -> ArtifactRef:
    started = time.monotonic()
    good, bad = sort_rows(place, source, rows)
    if not good and not bad:
        raise ProblemsRefused(f"{name}: no rows; name a source that has some")
    if not good or len(bad) > source.most_bad * (len(good) + len(bad)):
        first = bad[0]
        raise ProblemsRefused(
            f"{first.place}: {first.detail} ({len(bad)} of {len(good) + len(bad)} rows are bad; "
            f"problems.most_bad allows {source.most_bad:.0%})"
        )
    if bad:
        path = place.local_root / "set-aside" / f"{place.step_key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row.model_dump_json() + "\n" for row in bad))
        place.progress.note(f"{name}: {len(bad)} bad rows set aside in {path}")
    distinct = without_doubles(good) if source.count else good
    kept = distinct[: source.count]
    dropped = Counter(row.reason for row in bad)
    dropped |= {"double": len(good) - len(distinct), "beyond-count": len(distinct) - len(kept)}
    return place.publish("problems", kept, rows_in=len(good) + len(bad), dropped=dict(+dropped), started=started)


def sort_rows(place: Workplace, source: ProblemFile | Hub, rows: Iterator[Row]) -> tuple[list[Problem], list[BadRow]]:
    """Problems, and rows that are none: badly formed, of an id seen before, or with a right answer nobody can read.
    Reads little further than to as many different problems as are wanted."""
    good: list[Problem] = []
    bad: list[BadRow] = []
    places: dict[str, str] = {}
    different: set[Words] = set()
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, CHUNK)):
        found, worse = _told_apart(source, chunk, places)
        unreadable = _unreadable(place, found)
        readable = [problem for problem in found if problem.id not in unreadable]
        good += readable
        bad += worse
        bad += [
            BadRow(
                place=places[problem.id], id=problem.id, reason="unreadable-answer",
                detail=f"the right answer {problem.answer[:60]!r} reads neither as a number or formula nor as a letter",
            )
            for problem in found if problem.id in unreadable
        ]  # fmt: skip
        if source.count:
            different.update(words(problem.text) for problem in readable)
            if len(different) >= source.count:
                break
    return good, bad


def _told_apart(
    source: ProblemFile | Hub, rows: Sequence[tuple[int, Row]], places: dict[str, str]
) -> tuple[list[Problem], list[BadRow]]:
    """Well-formed problems of new ids, and the others. `places` holds where each id was seen."""
    found: list[Problem] = []
    bad: list[BadRow] = []
    for index, row in rows:
        made = row.content
        if not isinstance(made, BadRow):
            made = problem_of(row.content, row.place, f"row-{index}", source.columns)
        if isinstance(made, Problem) and made.id in places:
            detail = f"id {made.id!r} was already seen at {places[made.id]}; ids must differ, or set columns.id to ''"
            made = BadRow(place=row.place, id=made.id, reason="duplicate-id", detail=detail)
        if isinstance(made, BadRow):
            bad.append(made)
        else:
            places[made.id] = row.place
            found.append(made)
    return found, bad


def _unreadable(place: Workplace, problems: Sequence[Problem]) -> set[str]:
    """Ids of problems whose right answer cannot be told from others, or is none of their options."""
    readable = place.verifier.readable(problems)
    return {problem.id for problem, yes in zip(problems, readable, strict=True) if not yes}
