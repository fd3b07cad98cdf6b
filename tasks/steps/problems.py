"""Problems from their source: the story world, a file, or the Hugging Face hub.

Knows: files, the hub, which rows to set aside, how long prompts are. Must not know: engines, methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from conf.problems import Decontamination, Hub, NoDecontamination, ProblemFile, Problems, Stories
from models.inference.dialogue_sampler import prompt_ids
from reasoning.contamination import deduplicate, matches
from reasoning.problem_rows import needed_fields, optional_fields
from reasoning.problem_selection import ProblemSelection
from reasoning.records import Match, Problem, TextPart
from reasoning.stories import Split, Story, draw_stories
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.problem_files import Fields, ProblemsRefused, digest_of, files_of, rows_of
from tasks.steps.problem_hub import commit_of, files_of_hub, rows_of_hub
from tasks.steps.problem_intake import Intake, NamedProblem


class Sources(NamedTuple):
    """Rows of Problem, of each source that a pipeline reads."""

    train: ArtifactRef
    eval_sets: dict[str, ArtifactRef]
    """By name; the first is the main one."""


def load_problems(ctx: RunContext, source: Problems, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. `split` and `seed` choose among stories, and where a `count` is given among other problems.

    Raises ProblemsRefused.
    """
    if isinstance(source, Stories):
        return draw_problems(ctx, source=source, split=split, seed=seed)
    if isinstance(source, Hub):
        return load_hub(ctx, source=source, commit=commit_of(source), draw=_draw(source, split, seed))
    names = files_of(source.path)
    file = ArtifactRef(kind="file", uri=source.path, digest=digest_of(names), rows=0)
    return load_file(ctx, file=file, source=source, draw=_draw(source, split, seed))


def load_sources(ctx: RunContext, problems: Problems, eval_sets: Mapping[str, Problems], seed: int) -> Sources:
    """All of them, before any model is looked for. Raises ProblemsRefused."""
    drawn = {name: load_problems(ctx, source, Split.BENCHMARK, seed) for name, source in eval_sets.items()}
    return Sources(load_problems(ctx, problems, Split.TRAIN, seed), drawn)


def filter_sources_by_prompt_length(
    ctx: RunContext, sources: Sources, models: Sequence[ArtifactRef], room: int, roles: tuple[str, ...] = ()
) -> Sources:
    """`sources` without what is too long for one of the models that are to read it. Raises ProblemsRefused."""

    def fitting(name: str, drawn: ArtifactRef) -> ArtifactRef:
        return filter_by_prompt_length(ctx, name, drawn, models, room, roles)

    eval_sets = {name: fitting(repr(name), experiment) for name, experiment in sources.eval_sets.items()}
    return Sources(fitting("problems", sources.train), eval_sets)


def filter_by_prompt_length(
    ctx: RunContext,
    name: str,
    drawn: ArtifactRef,
    models: Sequence[ArtifactRef],
    room: int,
    roles: tuple[str, ...] = (),
) -> ArtifactRef:
    """`drawn` without what is too long; `name` is the source's, for a person. Raises ProblemsRefused."""
    fitting = drawn
    for model in models:
        fitting = drop_long_prompts(ctx, model=model, problems=fitting, room=room, roles=roles)
    if long := drawn.rows - fitting.rows:
        ctx.warn(
            f"{name}: {long} of {drawn.rows} are left out: with more than {room} tokens they leave no room in "
            f"engine.max_model_len for what is to follow them"
        )
    return fitting


def story_problem(story: Story, split: Split, seed: int, index: int) -> Problem:
    return Problem(
        id=f"story-{split}-{seed}-{index}",
        prompt=(TextPart(text=story.text),),
        answer=str(story.answer),
        level=story.level,
    )


@step
def draw_problems(ctx: StepContext, source: Stories, split: Split, seed: int) -> ArtifactRef:
    """Rows of Problem. No two splits can share one, whatever the seeds."""
    stories = draw_stories(split, seed, source.count, source.levels)
    rows = [story_problem(story, split, seed, index) for index, story in enumerate(stories)]
    return ctx.publish("problems", rows, rows_in=len(rows))


@step
def load_file(ctx: StepContext, file: ArtifactRef, source: ProblemFile, draw: ProblemSelection | None) -> ArtifactRef:
    """Rows of Problem from the files at `file.uri`, whose content is what the cache key holds."""
    rows = (row for name in files_of(file.uri) for row in rows_of(name, _fields(source)))
    named = (NamedProblem(f"row-{index}", "", row) for index, row in enumerate(rows))
    return _publish(ctx, source, file.uri, named, draw)


@step
def load_hub(ctx: StepContext, source: Hub, commit: str, draw: ProblemSelection | None) -> ArtifactRef:
    """Rows of Problem from one commit of a data set on the hub."""
    rows = rows_of_hub(files_of_hub(source, commit), _fields(source), draw)
    named = (NamedProblem(f"{file.name}:{row.number}", file.subset, row) for file, row in rows)
    return _publish(ctx, source, source.name, named, draw, source.shuffle_buffer)


@step
def drop_long_prompts(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, room: int, roles: tuple[str, ...]
) -> ArtifactRef:
    """Rows of Problem: those whose prompt, by itself and to each of the `roles`, takes at most `room` tokens. One that
    no engine can serve would end a run wherever it comes up. Raises ProblemsRefused when none is left."""
    checkpoint, rows = ctx.resources.checkpoint(model), ctx.artifacts.rows(problems, Problem)
    prompts = [[checkpoint.prompt_ids(row), *(prompt_ids(checkpoint, row, role) for role in roles)] for row in rows]
    kept = [row for row, shown in zip(rows, prompts, strict=True) if max(map(len, shown)) <= room]
    if not kept:
        raise ProblemsRefused(f"all {len(rows)} problems are longer than {room} tokens; raise engine.max_model_len")
    dropped = Counter({"prompt-too-long": len(rows) - len(kept)})
    return ctx.publish("problems", kept, rows_in=len(rows), dropped=dict(+dropped))


def by_id(ctx: RunContext, problems: ArtifactRef) -> dict[str, Problem]:
    return {problem.id: problem for problem in ctx.artifacts.rows(problems, Problem)}


def prompts_of(ctx: RunContext, model: ArtifactRef, problems: ArtifactRef) -> dict[str, tuple[int, ...]]:
    """Each problem's prompt in the model's token ids, by problem id."""
    checkpoint = ctx.resources.checkpoint(model)
    return {name: checkpoint.prompt_ids(problem) for name, problem in by_id(ctx, problems).items()}


def decontaminate(ctx: RunContext, how: Decontamination, sources: Sources, seed: int) -> ArtifactRef:
    """Those to train on, without doubles and without what benchmarks hold, too: those examined, and those of `how`.

    Raises ProblemsRefused when nothing is left.
    """
    if isinstance(how, NoDecontamination):
        ctx.warn(f"problems were not compared with the benchmarks: {how.reason}")
        return sources.train
    others = {
        f"against {index}": load_problems(ctx, source, Split.BENCHMARK, seed)
        for index, source in enumerate(how.against, start=1)
    }
    benchmarks = {**sources.eval_sets, **others}
    found = find_overlap(
        ctx,
        problems=sources.train,
        benchmarks=list(benchmarks.values()),
        names=list(benchmarks),
        words=how.ngram_size,
        share=how.min_overlap,
    )
    if found.rows:
        ctx.warn(
            f"{found.rows} problems stand in a benchmark, too, and are removed; they are listed in the artifact of "
            f"find-overlap, {found.digest[:12]}"
        )
    return drop_problems(ctx, problems=sources.train, matches=found)


@step
def find_overlap(
    ctx: StepContext,
    problems: ArtifactRef,
    benchmarks: Sequence[ArtifactRef],
    names: Sequence[str],
    words: int,
    share: float,
) -> ArtifactRef:
    """Rows of Match: problems that one of the benchmarks holds, too."""
    held = {name: ctx.artifacts.rows(experiment, Problem) for name, experiment in zip(names, benchmarks, strict=True)}
    rows = ctx.artifacts.rows(problems, Problem)
    found = matches(rows, held, words, share)
    counts = {f"compared with {name}": len(group) for name, group in held.items()}
    return ctx.publish("matches", found, rows_in=len(rows), counts=counts)


@step
def drop_problems(ctx: StepContext, problems: ArtifactRef, matches: ArtifactRef) -> ArtifactRef:
    """Rows of Problem: those without a match, each once. Raises ProblemsRefused when none is left."""
    rows, held = ctx.artifacts.rows(problems, Problem), {row.problem_id for row in ctx.artifacts.rows(matches, Match)}
    clean = [row for row in rows if row.id not in held]
    kept = deduplicate(clean)
    if not kept:
        raise ProblemsRefused(
            f"all {len(rows)} problems stand in a benchmark, too (listed in {matches.uri}); take others for problems"
        )
    dropped = Counter({"in-a-benchmark": len(rows) - len(clean), "double": len(clean) - len(kept)})
    return ctx.publish("problems", kept, rows_in=len(rows), dropped=dict(+dropped))


def _draw(source: ProblemFile | Hub, split: Split, seed: int) -> ProblemSelection | None:
    """None where all problems are taken: then they are the same for every seed and split."""
    return ProblemSelection(seed, split is Split.BENCHMARK) if source.count else None


def _fields(source: ProblemFile | Hub) -> Fields:
    return Fields(needed_fields(source.columns), optional_fields(source.columns))


def _publish(
    ctx: StepContext,
    source: ProblemFile | Hub,
    name: str,
    rows: Iterator[NamedProblem],
    draw: ProblemSelection | None,
    buffer: int | None = None,
) -> ArtifactRef:
    """The problems in `rows`; bad rows are set aside. Raises ProblemsRefused."""
    intake = Intake(source, ctx.resources.verifier)
    if draw and source.count:
        intake.draw(rows, draw, source.count, buffer)
    else:
        intake.take_all(rows)
    intake.refuse(name)
    bad = [*intake.malformed, *intake.unreadable]
    ctx.report_skipped(bad, f"bad rows of {name}")
    dropped = Counter(row.reason for row in bad) + Counter({"double": intake.doubles})
    dropped["beyond-count"] = intake.read - len(intake.good) - dropped.total()
    return ctx.publish("problems", intake.good, rows_in=intake.read, dropped=dict(+dropped))
