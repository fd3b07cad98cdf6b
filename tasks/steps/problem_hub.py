"""Rows of a data set on the Hugging Face hub: streamed from its files, never downloaded whole for a few.

Knows: the hub, which files a split has, in which order they are read. Must not know: what a row means.

All rows are read where all are wanted. For a draw the files come in an order that the seed decides, `AT_ONCE` of them
in turn, row by row, and the row groups of a Parquet file in such an order, too. So what is read first is a random
choice of row groups, or of files where they are of another kind; rows inside one follow one another as they are stored.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from conf.problems import Hub
from reasoning.problem_selection import ProblemSelection
from tasks.steps.problem_files import Fields, ProblemsRefused, Row, rows_of

AT_ONCE = 16
"""Files that are open at one time."""
T = TypeVar("T")


class DataFile(NamedTuple):
    name: str
    """Names its rows, with their numbers, and orders the files: by subset and position, wherever the set lies."""
    subset: str
    url: str


def commit_of(source: Hub) -> str:
    """The commit that the revision names now. Raises ProblemsRefused."""
    from huggingface_hub import HfApi

    if re.fullmatch("[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        return str(HfApi().dataset_info(source.name, revision=source.revision).sha)
    except Exception as error:  # the hub's client raises many kinds; all mean that the data set is not to be had
        raise hub_error(source, error) from None


def files_of_hub(source: Hub, commit: str) -> list[DataFile]:
    """The files of the split, of all subsets. Raises ProblemsRefused."""
    from datasets import load_dataset_builder

    found = []
    for subset in source.subsets or ("",):
        try:
            files = load_dataset_builder(source.name, subset or None, revision=commit).config.data_files or {}
        except Exception as error:
            raise hub_error(source, error) from None
        if source.split not in files:
            raise hub_error(source, LookupError(f"its splits: {', '.join(map(str, files)) or 'none'}"))
        prefix = f"{subset}/" if subset else ""
        found += [DataFile(f"{prefix}{index}", subset, str(url)) for index, url in enumerate(files[source.split])]
    return found


def rows_of_hub(
    files: Sequence[DataFile], fields: Fields, draw: ProblemSelection | None
) -> Iterator[tuple[DataFile, Row]]:
    """All rows: in their own order, or in that of the draw. Raises ProblemsRefused."""
    order = draw.order([file.name for file in files]) if draw else range(len(files))
    return in_turn((_stream(files[index], fields, draw) for index in order), AT_ONCE if draw else 1)


def _stream(file: DataFile, fields: Fields, draw: ProblemSelection | None) -> Iterator[tuple[DataFile, Row]]:
    def order(groups: int) -> Sequence[int]:
        return draw.order([f"{file.name}:{group}" for group in range(groups)]) if draw else range(groups)

    for row in rows_of(file.url, fields, order):
        yield file, row


def in_turn(streams: Iterator[Iterator[T]], at_once: int) -> Iterator[T]:
    """One of each of the first `at_once` streams in turn; the next stream takes the place of one that ends."""
    opened = deque(islice(streams, at_once))
    while opened:
        stream = opened.popleft()
        try:
            found = next(stream)
        except StopIteration:
            opened.extend(islice(streams, 1))
        else:
            opened.append(stream)
            yield found


def hub_error(source: Hub, error: Exception) -> ProblemsRefused:
    said = " ".join(str(error).split())
    return ProblemsRefused(
        f"{source.name} at {source.revision!r}, split {source.split!r}: {said}. Check the source's name, subset, split "
        f"and revision, and whether this machine may reach the hub"
    )
