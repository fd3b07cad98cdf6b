"""Loads problems from a source: the story world, a file, or the Hugging Face hub.

Removes problems whose prompt is too long, and training problems that also occur in a benchmark.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from conf.problems import Boards, Decontamination, Hub, NoDecontamination, ProblemFile, Problems, Stories
from models.inference.dialogue_sampler import prompt_ids
from reasoning.boards import Board, draw_boards
from reasoning.contamination import deduplicate, matches
from reasoning.problem_rows import LETTERS, needed_fields, optional_fields, with_options
from reasoning.problem_selection import ProblemSelection
from reasoning.records import ImagePart, Match, Problem, TextPart
from reasoning.stories import Split, Story, draw_stories
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.problem_files import Fields, ProblemsRefused, digest_of, files_of, rows_of
from tasks.steps.problem_hub import commit_of, files_of_hub, rows_of_hub
from tasks.steps.problem_images import folder_state
from tasks.steps.problem_intake import Intake, NamedRow


class Sources(NamedTuple):
    """References to rows of Problem, for each source of a pipeline."""

    train: ArtifactRef
    eval_sets: dict[str, ArtifactRef]
    """By name; the first is the main evaluation set."""


def load_problems(ctx: RunContext, source: Problems, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. Raises ProblemsRefused.

    `split` and `seed` select stories. They select other problems only where the source has a `count`.
    """
    if isinstance(source, Stories):
        return draw_problems(ctx, source=source, split=split, seed=seed)
    if isinstance(source, Boards):
        return draw_board_problems(ctx, source=source, split=split, seed=seed)
    if isinstance(source, Hub):
        return load_hub(
            ctx,
            source=source,
            commit=commit_of(source),
            selection=selection_of(source, split, seed),
            folder=folder_state(source.images),
        )
    names = files_of(source.path)
    file = ArtifactRef(kind="file", uri=source.path, digest=digest_of(names), rows=0)
    selection, folder = selection_of(source, split, seed), folder_state(source.images)
    return load_file(ctx, file=file, source=source, selection=selection, folder=folder)


def load_sources(ctx: RunContext, problems: Problems, eval_sets: Mapping[str, Problems], seed: int) -> Sources:
    """Loads all sources. Raises ProblemsRefused. Called first, so that bad data ends a run before a model is loaded."""
    loaded = {
        name: load_problems(ctx, source, Split.BENCHMARK, seed).called(name) for name, source in eval_sets.items()
    }
    return Sources(load_problems(ctx, problems, Split.TRAIN, seed).called("training problems"), loaded)


def filter_sources_by_prompt_length(
    ctx: RunContext,
    sources: Sources,
    models: Sequence[ArtifactRef],
    room: int,
    roles: tuple[str, ...] = (),
    references: Sequence[ArtifactRef] = (),
) -> Sources:
    """`filter_by_prompt_length` for each source; evaluation sets must also fit the `references`. Raises
    ProblemsRefused."""

    def filtered(name: str, problems: ArtifactRef, models: Sequence[ArtifactRef]) -> ArtifactRef:
        return filter_by_prompt_length(ctx, name, problems, models, room, roles).called(problems.label)

    readers = [*models, *references]
    eval_sets = {name: filtered(repr(name), eval_set, readers) for name, eval_set in sources.eval_sets.items()}
    return Sources(filtered("problems", sources.train, models), eval_sets)


def filter_by_prompt_length(
    ctx: RunContext,
    name: str,
    problems: ArtifactRef,
    models: Sequence[ArtifactRef],
    room: int,
    roles: tuple[str, ...] = (),
) -> ArtifactRef:
    """Rows of Problem whose prompt takes at most `room` tokens for each model; warns of the others.

    `name`: the source's name in the warning. `roles`: as in `drop_long_prompts`. Raises ProblemsRefused.
    """
    kept = problems
    for model in models:
        kept = drop_long_prompts(ctx, model=model, problems=kept, room=room, roles=roles)
    if dropped := problems.rows - kept.rows:
        takes_images = any(ctx.resources.checkpoint(model).takes_images for model in models)
        ctx.warn(
            f"{name}: {dropped} of {problems.rows} are dropped: their prompts are longer than {room} tokens, which "
            f"leaves no room for a completion in engine.max_model_len"
            + ", or hold a model's token for images"
            * takes_images
        )
    return kept


def story_problem(story: Story, split: Split, seed: int, index: int, options: int = 0) -> Problem:
    """A story as a problem, with as many `options`; its id follows from split, seed and index."""
    choices = tuple(map(str, story.options(options))) if options else None
    return Problem(
        id=f"story-{split}-{seed}-{index}",
        prompt=(TextPart(text=with_options(story.text, choices)),),
        answer=LETTERS[choices.index(str(story.answer))] if choices else str(story.answer),
        choices=choices,
        level=story.level,
        subject=story.item if choices else None,
    )


@step()
def draw_problems(ctx: StepContext, source: Stories, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem from the story world. Splits never share a problem, whatever the seeds."""
    stories = draw_stories(split, seed, source.count, source.levels)
    rows = [story_problem(story, split, seed, index, source.options) for index, story in enumerate(stories)]
    return ctx.publish("problems", rows, rows_in=len(rows))


@step()
def draw_board_problems(ctx: StepContext, source: Boards, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem from the picture world. Splits never share a problem, whatever the seeds."""
    boards = draw_boards(split, seed, source.count, source.levels)
    rows = [board_problem(board, f"board-{split}-{seed}-{index}") for index, board in enumerate(boards)]
    return ctx.publish("problems", rows, rows_in=len(rows))


def board_problem(board: Board, name: str) -> Problem:
    """A board as a problem: the picture, then the question."""
    parts = (ImagePart(), TextPart(text=board.text))
    return Problem(id=name, prompt=parts, images=(board.picture(),), answer=str(board.answer), level=board.level)


@step()
def swap_images(ctx: StepContext, problems: ArtifactRef) -> ArtifactRef:
    """Rows of Problem, each with the images of the next one that has as many and others. A control: a model that looks
    at them can then be right by chance alone. Problems without such a next one are dropped."""
    rows = ctx.artifacts.rows(problems, Problem)
    alike: dict[int, list[Problem]] = defaultdict(list)
    for row in rows:
        alike[len(row.images)].append(row)
    swapped = []
    for group in alike.values():
        for place, row in enumerate(group):
            after = (*group[place + 1 :], *group[:place]) if row.images else ()
            other = next((other.images for other in after if not set(other.images) & set(row.images)), None)
            if other:
                swapped.append(row.model_copy(update={"images": other}))
    dropped = {"no-other-images": len(rows) - len(swapped)} if len(swapped) < len(rows) else {}
    return ctx.publish("problems", swapped, rows_in=len(rows), dropped=dropped)


@step()
def load_file(
    ctx: StepContext,
    file: ArtifactRef,
    source: ProblemFile,
    selection: ProblemSelection | None,
    folder: ArtifactRef | None,
) -> ArtifactRef:
    """Rows of Problem from the files at `file.uri`. The cache key holds their content, not their path. `folder`: of the
    rows' images."""
    _ = folder  # for the cache key
    rows = (row for name in files_of(file.uri) for row in rows_of(name, fields_of(source)))
    named = (NamedRow(f"row-{index}", "", row) for index, row in enumerate(rows))
    return _publish(ctx, source, file.uri, named, selection)


@step()
def load_hub(
    ctx: StepContext, source: Hub, commit: str, selection: ProblemSelection | None, folder: ArtifactRef | None
) -> ArtifactRef:
    """Rows of Problem from one commit of a data set on the hub. `folder`: of the rows' images."""
    _ = folder  # for the cache key
    rows = rows_of_hub(files_of_hub(source, commit), fields_of(source), selection)
    named = (NamedRow(f"{file.name}:{row.number}", file.subset, row) for file, row in rows)
    return _publish(ctx, source, source.name, named, selection, source.shuffle_buffer)


@step()
def drop_long_prompts(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, room: int, roles: tuple[str, ...]
) -> ArtifactRef:
    """Rows of Problem whose prompt, alone and with the role prompt of each of `roles`, takes at most `room` tokens, and
    whose text holds no token that stands for an image.

    Raises ProblemsRefused when none is left.
    """
    checkpoint, given = ctx.resources.checkpoint(model), ctx.artifacts.rows(problems, Problem)
    rows = [row for row in given if not checkpoint.holds_placeholder(row.text)]
    if not rows:
        raise ProblemsRefused(
            f"all {len(given)} problems hold a token that stands for an image; remove it from their text"
        )
    prompts = [[checkpoint.prompt_ids(row), *(prompt_ids(checkpoint, row, role) for role in roles)] for row in rows]
    kept = [row for row, of_row in zip(rows, prompts, strict=True) if max(map(len, of_row)) <= room]
    if not kept:
        raise ProblemsRefused(f"all {len(rows)} problems are longer than {room} tokens; raise engine.max_model_len")
    dropped = Counter({"image-token": len(given) - len(rows), "prompt-too-long": len(rows) - len(kept)})
    return ctx.publish("problems", kept, rows_in=len(given), dropped=dict(+dropped))


def by_id(ctx: RunContext, problems: ArtifactRef) -> dict[str, Problem]:
    """The problems by id, in the order of the rows."""
    return {problem.id: problem for problem in ctx.artifacts.rows(problems, Problem)}


def prompts_of(ctx: RunContext, model: ArtifactRef, problems: ArtifactRef) -> dict[str, TokenIds]:
    """Each problem's prompt in the model's token ids, by problem id."""
    checkpoint = ctx.resources.checkpoint(model)
    return {name: checkpoint.prompt_ids(problem) for name, problem in by_id(ctx, problems).items()}


def decontaminate(ctx: RunContext, settings: Decontamination, sources: Sources, seed: int) -> ArtifactRef:
    """Training problems without duplicates, and without problems of the evaluation sets or of `settings.against`.

    Warns of removed problems. Raises ProblemsRefused when none is left.
    """
    if isinstance(settings, NoDecontamination):
        ctx.warn(f"problems were not compared with the benchmarks: {settings.reason}")
        return sources.train
    others = {
        f"against {index}": load_problems(ctx, source, Split.BENCHMARK, seed)
        for index, source in enumerate(settings.against, start=1)
    }
    benchmarks = {**sources.eval_sets, **others}
    overlap = find_overlap(
        ctx,
        problems=sources.train,
        benchmarks=list(benchmarks.values()),
        names=list(benchmarks),
        ngram_size=settings.ngram_size,
        min_overlap=settings.min_overlap,
    )
    if overlap.rows:
        ctx.warn(
            f"{overlap.rows} problems also occur in a benchmark and are removed; they are listed in the artifact of "
            f"find-overlap, {overlap.digest[:12]}"
        )
    return drop_problems(ctx, problems=sources.train, matches=overlap).called(sources.train.label)


@step()
def find_overlap(
    ctx: StepContext,
    problems: ArtifactRef,
    benchmarks: Sequence[ArtifactRef],
    names: Sequence[str],
    ngram_size: int,
    min_overlap: float,
) -> ArtifactRef:
    """Rows of Match: problems that also occur in one of the benchmarks."""
    problems_of = {name: ctx.artifacts.rows(ref, Problem) for name, ref in zip(names, benchmarks, strict=True)}
    rows = ctx.artifacts.rows(problems, Problem)
    overlap = matches(rows, problems_of, ngram_size, min_overlap)
    counts = {f"compared with {name}": len(group) for name, group in problems_of.items()}
    return ctx.publish("matches", overlap, rows_in=len(rows), counts=counts)


@step()
def drop_problems(ctx: StepContext, problems: ArtifactRef, matches: ArtifactRef) -> ArtifactRef:
    """Rows of Problem without a match and without duplicates. Raises ProblemsRefused when none is left."""
    rows = ctx.artifacts.rows(problems, Problem)
    matched = {row.problem_id for row in ctx.artifacts.rows(matches, Match)}
    clean = [row for row in rows if row.id not in matched]
    kept = deduplicate(clean)
    if not kept:
        raise ProblemsRefused(
            f"all {len(rows)} problems also occur in a benchmark (listed in {matches.uri}); use other training problems"
        )
    dropped = Counter({"in-a-benchmark": len(rows) - len(clean), "duplicate": len(clean) - len(kept)})
    return ctx.publish("problems", kept, rows_in=len(rows), dropped=dict(+dropped))


def selection_of(source: ProblemFile | Hub, split: Split, seed: int) -> ProblemSelection | None:
    """None where all problems are taken: the result is then the same for every seed and split."""
    return ProblemSelection(seed, split is Split.BENCHMARK) if source.is_drawn else None


def fields_of(source: ProblemFile | Hub) -> Fields:
    return Fields(needed_fields(source.columns), optional_fields(source.columns))


def _publish(
    ctx: StepContext,
    source: ProblemFile | Hub,
    name: str,
    rows: Iterator[NamedRow],
    selection: ProblemSelection | None,
    buffer: int | None = None,
) -> ArtifactRef:
    """Publishes the problems in `rows` and lists the invalid rows. Raises ProblemsRefused."""
    intake = Intake(source, ctx.resources.verifier)
    if selection and source.per_subject:
        intake.select_by_subject(rows, selection, source.per_subject, buffer)
    elif selection and source.count:
        intake.select(rows, selection, source.count, buffer)
    else:
        intake.take_all(rows)
    intake.validate(name)
    invalid = [*intake.malformed, *intake.unreadable]
    ctx.report_skipped(invalid, f"invalid rows of {name}")
    dropped = Counter(row.reason for row in invalid) + Counter({"duplicate": intake.duplicates})
    dropped["beyond-count"] = intake.read - len(intake.problems) - dropped.total()
    counts = {"images scaled down": intake.scaled_down} if intake.scaled_down else {}
    return ctx.publish("problems", intake.problems, rows_in=intake.read, dropped=dict(+dropped), counts=counts)
