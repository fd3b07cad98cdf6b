"""Traces that a data set holds, for the problems that were taken from it (arXiv 2509.05226, section on data).

It knows sources of rows and the student's tokenizer. It must not know how traces are selected or compressed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from conf.cot_distillation import DatasetTeacher
from conf.problems import Hub, ProblemFile
from models.checkpoints.checkpoint import Checkpoint
from reasoning.answers.boxed import boxed
from reasoning.problem_rows import image_values, problem_of, with_images
from reasoning.problem_selection import ProblemSelection
from reasoning.records import InvalidRow, Problem, Trace, Usage, Verdict
from reasoning.stories import Split
from reasoning.thinking import joined
from reasoning.token_ids import TokenIds
from reasoning.trace_rows import InvalidTrace, RowTrace, trace_fields, traces_in
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.steps.problem_files import Fields, ProblemsRefused, Row, digest_of, files_of, rows_of
from tasks.steps.problem_hub import commit_of, files_of_hub, rows_of_hub
from tasks.steps.problem_images import ImageReader, InvalidImage, entries_of, folder_state
from tasks.steps.problems import by_id, fields_of, selection_of

CHECKED_AT_ONCE = 256
"""Traces whose answers are checked together."""


def read_traces(
    ctx: RunContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    source: ProblemFile | Hub,
    teacher: DatasetTeacher,
    seed: int,
) -> ArtifactRef:
    """Rows of Trace in the token ids of `model`, from the source that `problems` were taken from.

    Files are read whole; a data set on the hub until a trace of every problem is found. Raises ProblemsRefused.
    """
    if isinstance(source, Hub):
        return read_hub_traces(
            ctx,
            model=model,
            problems=problems,
            source=source,
            commit=commit_of(source),
            selection=selection_of(source, Split.TRAIN, seed),
            teacher=teacher,
            folder=folder_state(source.images),
        )
    file = ArtifactRef(kind="file", uri=source.path, digest=digest_of(files_of(source.path)), rows=0)
    return read_file_traces(
        ctx,
        model=model,
        problems=problems,
        file=file,
        source=source,
        teacher=teacher,
        folder=folder_state(source.images),
    )


@step()
def read_file_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    file: ArtifactRef,
    source: ProblemFile,
    teacher: DatasetTeacher,
    folder: ArtifactRef | None,
) -> ArtifactRef:
    """Rows of Trace from the files at `file.uri`. The cache key holds their content, not their path. `folder`: of the
    rows' images."""
    _ = folder  # for the cache key
    rows = (row for name in files_of(file.uri) for row in rows_of(name, _fields(source, teacher)))
    return _publish(ctx, model, problems, source, teacher, rows)


@step()
def read_hub_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    source: Hub,
    commit: str,
    selection: ProblemSelection | None,
    teacher: DatasetTeacher,
    folder: ArtifactRef | None,
) -> ArtifactRef:
    """Rows of Trace from one commit of a data set on the hub, in the order of `selection`."""
    _ = folder  # for the cache key
    rows = rows_of_hub(files_of_hub(source, commit), _fields(source, teacher), selection)
    return _publish(ctx, model, problems, source, teacher, (row for _, row in rows), all_rows=False)


def _fields(source: ProblemFile | Hub, teacher: DatasetTeacher) -> Fields:
    of_problems = fields_of(source)
    return of_problems._replace(needed=of_problems.needed | trace_fields(teacher))


class FoundTrace(NamedTuple):
    """A trace of a problem, in the student's form."""

    problem: Problem
    text: str
    answer: str | None


class _Reader:
    """Traces of `problems` in rows of a data set, and what could not be used."""

    def __init__(self, checkpoint: Checkpoint, problems: Iterable[Problem], teacher: DatasetTeacher):
        self._checkpoint, self._teacher = checkpoint, teacher
        self._by_content: dict[tuple[str, ...], Problem] = {}
        for problem in problems:
            self._by_content.setdefault(problem.content, problem)
        self._missing = set(self._by_content)
        self._texts = {text for text, *_ in self._by_content}
        self.found = 0
        self.invalid: list[InvalidRow] = []

    def traces(self, rows: Iterable[Row], source: ProblemFile | Hub, all_rows: bool) -> Iterator[FoundTrace]:
        """Usable traces in the order of the rows; without `all_rows`, up to the row where each problem had its own."""
        images = ImageReader(source.images)
        for row in rows:
            problem = self._problem(row, source, images)
            if problem is None:
                continue  # counted where the problems were loaded
            self._missing.discard(problem.content)
            for trace in traces_in(row.content, self._teacher):
                self.found += 1
                if (problematic := self._invalid(trace)) is None:
                    yield self._in_student_form(problem, trace)  # type: ignore[arg-type]
                else:
                    self.invalid.append(InvalidRow(location=row.location, id=problem.id, **problematic._asdict()))
            if not self._missing and not all_rows:
                return

    def _problem(self, row: Row, source: ProblemFile | Hub, images: ImageReader) -> Problem | None:
        """The problem that a row is about; its images are read only where the text is a problem's."""
        parsed = row.content
        if not isinstance(parsed, InvalidRow):
            parsed = problem_of(parsed, row.location, row.location, source.columns)
        if isinstance(parsed, InvalidRow):
            return None
        values = entries_of(image_values(row.content, source.columns))
        if len(values) > source.images.max_count or with_images(parsed, [b""] * len(values)).text not in self._texts:
            return None
        if source.columns.image_columns:
            try:
                parsed = with_images(parsed, images.read(values))
            except InvalidImage:
                return None
        return self._by_content.get(parsed.content)

    def _invalid(self, trace: RowTrace | InvalidTrace) -> InvalidTrace | None:
        if isinstance(trace, InvalidTrace):
            return trace
        if self._checkpoint.holds_control(trace.thought + trace.reply):
            return InvalidTrace("control-token", "the text contains a control token of the student's tokenizer")
        return None

    def _in_student_form(self, problem: Problem, trace: RowTrace) -> FoundTrace:
        text = joined(trace.thought, trace.reply, self._checkpoint.prompt.thinking)
        return FoundTrace(problem, text, boxed(trace.reply))

    def validate(self, source: str) -> None:
        """Raises ProblemsRefused when there is no trace, or when too many cannot be used."""
        if not self.found:
            raise ProblemsRefused(f"{source}: holds no row of the problems that were taken from it")
        if len(self.invalid) > self._teacher.max_invalid_fraction * self.found:
            first = self.invalid[0]
            raise ProblemsRefused(
                f"{first.location}: {first.detail} ({len(self.invalid)} of {self.found} traces cannot be used; "
                f"teacher.max_invalid_fraction allows {self._teacher.max_invalid_fraction:.0%})"
            )


def _publish(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    source: ProblemFile | Hub,
    teacher: DatasetTeacher,
    rows: Iterable[Row],
    all_rows: bool = True,
) -> ArtifactRef:
    """Publishes the traces in `rows` that are of `problems`, and lists those that cannot be used."""
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    reader, dropped, usage = _Reader(checkpoint, known.values(), teacher), Counter[str](), Usage()
    found, samples = reader.traces(rows, source, all_rows), Counter[str]()
    with RowFile() as traces:
        while group := list(islice(found, CHECKED_AT_ONCE)):
            verdicts, checks = ctx.resources.verdicts([one.problem for one in group], [[one.answer] for one in group])
            usage += checks
            for one, (verdict,) in zip(group, verdicts, strict=True):
                name, token_ids = one.problem.id, TokenIds.join([checkpoint.encode(one.text), [checkpoint.end_id]])
                if len(token_ids) > teacher.max_tokens:
                    dropped["too-long"] += 1
                    continue
                # Some tokenizers normalise: the text is what the tokens say, as in a sampled trace.
                text = checkpoint.decode(token_ids)
                traces.append(_trace(one, samples[name], token_ids, text, verdict))
                samples[name] += 1
        reader.validate(problems.label or problems.uri)
        if not len(traces):
            raise ProblemsRefused(
                f"all {reader.found} traces are longer than teacher.max_tokens ({teacher.max_tokens}); raise it"
            )
        ctx.report_skipped(reader.invalid, "invalid traces")
        dropped += Counter(row.reason for row in reader.invalid)
        counts = {"problems": len(known), "problems without a trace": len(known) - len(samples)}
        return ctx.publish("traces", traces, rows_in=reader.found, dropped=dict(dropped), usage=usage, counts=counts)


def _trace(found: FoundTrace, sample: int, token_ids: TokenIds, text: str, verdict: Verdict) -> Trace:
    return Trace(
        problem_id=found.problem.id,
        sample=sample,
        token_ids=token_ids,
        text=text,
        truncated=False,
        verdict=verdict,
    )
