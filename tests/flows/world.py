"""A scripted model of the story world, deterministic, with the real tokenizer; and a pipeline run with it."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prefect import flow
from rich.console import Console

from conf.tiny_model import Teacher
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from models.tiny_model import END
from models.training.launcher import TrainerJob
from reasoning.stories import OverThinker, Split, Story, draw_stories
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import Step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.progress import Progress
from tests.models.chat import Answer

LEVELS = (1, 2, 3, 4)
STORIES: dict[str, Story] = {
    story.text: story
    for split in Split
    for levels in (LEVELS, (9,))
    for seed in (0, 1)
    for story in draw_stories(split, seed, 60, levels)
}
GRADES = {"clarity": 4, "completeness": 5, "correctness": 5, "redundancy": 2}
CONCLUSION = re.compile(r"(?:That makes|It is|Now it is) (\d+)")


def speak(model: Checkpoint, request: Request, number: int) -> Completion:
    """A completion of the scripted model: thinks as the teacher does, and answers with its latest conclusion."""
    text = model.decode(request.prompt_ids)
    story = STORIES[text.removeprefix("<|user|>").split("<|assistant|>")[0].split("\n")[0].removesuffix(" Be brief.")]
    written = text.split("<think>\n")[1]
    latest = (CONCLUSION.findall(written) or ["0"])[-1]
    if not written:
        thinking = OverThinker(Teacher(), random.Random(f"{story.text}{number}{request.sampling.temperature}")).think(
            story
        )
        reply = f"{thinking.text}</think>{thinking.reply}"
    elif written.endswith("\\boxed{"):
        reply = latest + "}."
    else:
        reply = f" {latest}.\n</think>\nThe answer is \\boxed{{{latest}}}."
    return Completion(model.encode(reply + END), True)


def speak_turn(model: Checkpoint, request: Request, number: int) -> Completion:
    """A turn of the scripted pair; without a role prompt, as `speak`.

    Long first concludes 0, which is wrong. On a hard story it doubts that, so Short asks again, and Long is right.
    """
    text = model.decode(request.prompt_ids)
    if "<|system|>" not in text:
        return speak(model, request, number)
    question, transcript = text.split("<|user|>")[1].split("<|assistant|>")
    story = STORIES[question.split("\n")[0]]
    if transcript.endswith("<think>"):
        thought = "\nNow it is 0." if "</rethink>" not in transcript else f"\nNow it is {story.answer}."
        doubt = "?" if story.level > 2 and "</rethink>" not in transcript else ""
        return Completion(model.encode(f"{thought}{doubt}\n</think>{END}"), True)
    latest = (CONCLUSION.findall(transcript) or ["0"])[-1]
    closing = "</rethink>" if transcript.endswith("?\n</think><answer>") else "</answer>"
    return Completion(model.encode(f"\nThe answer is \\boxed{{{latest}}}.\n{closing}{END}"), True)


def scripted() -> ScriptedEngine:
    return ScriptedEngine(speak)


def speaking() -> ScriptedEngine:
    return ScriptedEngine(speak_turn)


def pretend_training(job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """A stand-in trainer: copies the base model, with another fingerprint."""
    shutil.copytree(job.model, job.output)
    recorded = job.model_dump(mode="json", include={"beta", "learning_rate", "rl"}) | {"rows": job.rows.name}
    (job.output / "generation_config.json").write_text(json.dumps({"trained": recorded}))
    job.progress.write_text("{}")
    progress(1, 1)
    return [{"step": 1, "steps": 1, "loss": 1.0}]


def assist(body: dict[str, Any], number: int) -> Answer:
    """A scripted auxiliary model: rates, chunks, grades or compresses, by the schema of the request."""
    schema = body["response_format"]["json_schema"]["name"]
    if schema == "Level":
        return Answer(json.dumps({"level": 1 + len(body["messages"][1]["content"]) % 10}))
    if schema == "Thoughts":
        lines = body["messages"][1]["content"].split("### steps\n")[1].split("\n### end")[0].split("\n")
        blocks = [{"start": index, "end": index, "kind": "solving"} for index in range(len(lines) - 2)]
        blocks += [{"start": max(0, len(lines) - 2), "end": len(lines) - 1, "kind": "summary"}]
        return Answer(json.dumps({"blocks": blocks}))
    if schema == "Grades":
        return Answer(json.dumps(GRADES))
    thinking = body["messages"][1]["content"].split("### thinking\n")[1].split("\n### end")[0]
    return Answer(json.dumps({"thinking": thinking.split("Wait")[0].split("Hmm")[0]}))


def run_plainly(self: Step, ctx: StepContext, inputs: dict[str, Any]) -> tuple[ArtifactRef, bool]:
    """`Step.run_in_prefect` without Prefect: a plain call, with the result in a file under the same key."""
    file = ctx.directory.local_root / "results" / ctx.key
    if file.exists():
        return ArtifactRef.model_validate_json(file.read_text()), True
    ref = self.attempt(ctx, **inputs)
    file.parent.mkdir(exist_ok=True)
    file.write_text(ref.model_dump_json())
    return ref, ctx.was_made_elsewhere


@contextmanager
def without_prefect() -> Iterator[None]:
    """Flows and steps are plain calls, and reports are not published."""

    plain_flow = patch(f"{__name__}.flow", lambda name: lambda body: body)
    with plain_flow, patch.object(Step, "run_in_prefect", run_plainly), patch("tasks.reports.report._publish"):
        yield


def report_of(body: Callable[[RunContext, Any], Path], ctx: RunContext, settings: Any) -> dict[str, Any]:
    """Runs a pipeline, in a Prefect flow unless `without_prefect`."""

    @flow(name="test")
    def run() -> Path:
        return body(ctx, settings)

    return json.loads(run().read_text())


def silent_progress() -> Progress:
    return Progress(Console(file=StringIO()))


class ScriptedRun:
    """One run of a pipeline with the scripted model: its report, the steps it ran, and its sampled completions."""

    def __init__(
        self,
        name: str,
        settings: Any,
        body: Callable[[RunContext, Any], Path],
        make: Callable[[], ScriptedEngine] = scripted,
    ):
        self.engines: list[ScriptedEngine] = []

        def engine(*_: Any) -> ScriptedEngine:
            self.engines.append(make())
            return self.engines[-1]

        with RunContext(
            name,
            settings.storage,
            settings.engine,
            prompt=settings.prompt,
            make_engine=engine,
            trainer=self.train,
            progress=silent_progress(),
        ) as self.ctx:
            self.report = report_of(body, self.ctx, settings)
        self.redone = [line["stage"] for line in self.report["ledger"] if not line["cached"]]
        self.completions = sum(engine.completions for engine in self.engines)

    def train(self, job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        return pretend_training(job, folder, progress)

    def rows(self, step: str, kind: type[Any], which: int = 0) -> list[Any]:
        """Rows of the artifact of the step's call number `which`."""
        return self.ctx.artifacts.rows(self.made(step, which), kind)

    def made(self, step: str, which: int = 0) -> ArtifactRef:
        return [entry.artifact for entry in self.ctx.ledger if entry.step == step][which]
