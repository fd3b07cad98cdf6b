"""Streams the rows of a data set on the Hugging Face hub from its files.

A selection of some problems reads only part of the data set. The seed then shuffles the files and the row groups of
each Parquet file, and `OPEN_FILES` files are read in turn, row by row. So the rows that are read first come from a
random sample of row groups, or of files in other formats. Rows within one group keep their stored order.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from conf.base import Settings
from conf.problems import Hub
from reasoning.problem_selection import ProblemSelection
from tasks.steps.problem_files import Fields, ProblemsRefused, Row, rows_of

OPEN_FILES = 16
"""Files that are open at once."""
S = TypeVar("S", bound=Settings)
T = TypeVar("T")


class DataFile(NamedTuple):
    """One file of a split."""

    name: str
    """Subset and position, independent of where the data set is stored. Part of the row ids and of the file order."""
    subset: str
    url: str


def commit_of(source: Hub) -> str:
    """The commit hash that `source.revision` names now. Raises ProblemsRefused."""
    from huggingface_hub import HfApi

    if re.fullmatch("[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        return str(HfApi().dataset_info(source.name, revision=source.revision).sha)
    except Exception as error:  # the hub's client raises many types; each means that the data set is unavailable
        raise hub_error(source, error) from None


def pinned(source: S) -> S:
    """A data set on the hub at the commit that its revision names now; any other source as it is."""
    return source.model_copy(update={"revision": commit_of(source)}) if isinstance(source, Hub) else source


def files_of_hub(source: Hub, commit: str) -> list[DataFile]:
    """The files of the split, for all subsets. Raises ProblemsRefused."""
    from datasets import load_dataset_builder

    data_files = []
    for subset in source.subsets or ("",):
        try:
            files = load_dataset_builder(source.name, subset or None, revision=commit).config.data_files or {}
        except Exception as error:
            raise hub_error(source, error) from None
        if source.split not in files:
            raise hub_error(source, LookupError(f"its splits: {', '.join(map(str, files)) or 'none'}"))
        prefix = f"{subset}/" if subset else ""
        data_files += [DataFile(f"{prefix}{index}", subset, str(url)) for index, url in enumerate(files[source.split])]
    return data_files


def rows_of_hub(
    files: Sequence[DataFile], fields: Fields, selection: ProblemSelection | None
) -> Iterator[tuple[DataFile, Row]]:
    """All rows with their files, in stored order or in the order of `selection`. Raises ProblemsRefused."""
    order = selection.order([file.name for file in files]) if selection else range(len(files))
    return round_robin((_stream(files[index], fields, selection) for index in order), OPEN_FILES if selection else 1)


def _stream(file: DataFile, fields: Fields, selection: ProblemSelection | None) -> Iterator[tuple[DataFile, Row]]:
    def order(groups: int) -> Sequence[int]:
        return selection.order([f"{file.name}:{group}" for group in range(groups)]) if selection else range(groups)

    for row in rows_of(file.url, fields, order):
        yield file, row


def round_robin(streams: Iterator[Iterator[T]], at_once: int) -> Iterator[T]:
    """Takes one item of each of the first `at_once` streams in turn. A stream that ends is replaced by the next one."""
    open_streams = deque(islice(streams, at_once))
    while open_streams:
        stream = open_streams.popleft()
        try:
            item = next(stream)
        except StopIteration:
            open_streams.extend(islice(streams, 1))
        else:
            open_streams.append(stream)
            yield item


def hub_error(source: Hub, error: Exception) -> ProblemsRefused:
    """A one-line error that names the data set, the cause and the remedy."""
    cause = " ".join(str(error).split())
    return ProblemsRefused(
        f"{source.name} at {source.revision!r}, split {source.split!r}: {cause}. Check the source's name, subset, "
        f"split and revision, and whether this machine may reach the hub"
    )
