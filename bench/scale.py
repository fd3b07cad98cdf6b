"""Curation on many long traces, with a scripted engine: seconds of each step, peak memory, bytes on disk. What a GPU
would do takes no time here, so that only this software's own cost is left.

    python -m bench.scale                     # DTO, 2,000 and 30,000 traces; half an hour
    python -m bench.scale cot-distillation    # the same numbers; results in bench/results/scale*.json
    python -m bench.scale dto 30000 FOLDER    # one size, in a folder that has room for about 0.1 MB a trace

Traces have about 8,150 tokens. DTO: in 150 segments; the first prefix that passes is the tenth; every inner segment
before it is tried for removal, and none can be removed. CoT distillation: in about 10 segments, of which all prefixes
are probed; the training rows are built, too.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from bench.rollouts import machine
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.engine import Storage
from conf.load import load
from conf.pipelines import PIPELINES
from flows.cot_distillation import compress, pairs_of, rate
from flows.dto import curate, pair_with_originals
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from reasoning.records import Problem, Record, StageCount, TextPart, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import Step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.progress import Progress
from tasks.runtime.rows import RowFile, read_rows
from tasks.steps.controls import build_sft_rows

RESULTS = Path(__file__).parent / "results"
SAMPLES, TOKENS, CROSSING = 4, 8192, 10
"""Traces for each problem, tokens of a trace, and the prefix that passes first."""
LIMIT = 20_000
SENTENCE = "Wait, {} has {} apples and gets {} more, so it is {} now. One more could be there, which is not so.\n"
NAMES, VARIANTS = ("Ann", "Ben", "Cem", "Dana"), 64


@cache
def thinking(model: Checkpoint, variant: int) -> TokenIds:
    """One of a few traces."""
    rng, ids = random.Random(variant), TokenIds()
    closing = TokenIds((*model.encode("</think>\nThe answer is \\boxed{42}."), model.end_id))
    while len(ids) < TOKENS - 100:
        ids += model.encode(SENTENCE.format(rng.choice(NAMES), *(rng.randrange(1000) for _ in range(3))))
    return ids + closing


def speak(model: Checkpoint, request: Request, number: int) -> Completion:
    """Samples whole traces; answers a probe rightly from the tenth sentence on; ends a cut trace rightly."""
    limit = request.sampling.max_tokens
    if limit > 1000:
        return Completion(thinking(model, number % VARIANTS), True)
    is_late = len(request.prompt_ids) > CROSSING * len(model.encode(SENTENCE))
    if limit < 20:
        return Completion(model.encode("42}" if is_late else "7}"), True)
    return Completion(TokenIds((*model.encode(" 42.\n</think>\nThe answer is \\boxed{42}."), model.end_id)), True)


def plainly(step: Step, ctx: StepContext, inputs: dict[str, Any]) -> tuple[ArtifactRef, bool]:
    """Runs a step without Prefect."""
    return step.attempt(ctx, **inputs), False


def problems_of(ctx: RunContext, count: int) -> ArtifactRef:
    rows = [
        Problem(id=f"p{number}", prompt=(TextPart(text=f"Problem {number}"),), answer="42") for number in range(count)
    ]
    return ctx.artifacts.publish_rows("problems", rows, StageCount(rows_in=count, rows_out=count, dropped={}))


def curate_dto(ctx: RunContext, settings: Dto, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """Returns the traces."""
    curated = curate(ctx, settings, base, problems)
    pair_with_originals(ctx, settings, curated, curated.optimised)
    return curated.traces


def curate_cot(ctx: RunContext, settings: CotDistillation, base: ArtifactRef, problems: ArtifactRef) -> ArtifactRef:
    """Returns the traces."""
    rated = rate(ctx, settings, base, problems)
    compressed = compress(ctx, settings, rated)
    build_sft_rows(ctx, model=base, problems=problems, completions=compressed, max_length=LIMIT)
    pairs_of(ctx, settings, rated, compressed)
    return rated.traces


CURATE: dict[Any, Callable[..., ArtifactRef]] = {Dto: curate_dto, CotDistillation: curate_cot}
CHANGES = {
    Dto: (f"training.max_length={LIMIT}",),
    CotDistillation: (
        f"sft.max_length={LIMIT}",
        f"dpo.max_length={LIMIT}",
        "segmentation.min_chars=2500",
        "segmentation.max_chars=12000",
        f"compression.budget.by_level={[TOKENS // 2] * 10}",
    ),
}


def run(kind: Any, traces: int, folder: Path) -> dict[str, Any]:
    """Curates so many traces; figures of each step."""
    changes = (f"storage.root={folder}", f"sampling.max_tokens={TOKENS}", f"engine.max_model_len={LIMIT}")
    settings = load(kind, "tiny", (*changes, *CHANGES[kind]))
    progress = Progress(Console(file=StringIO()))
    began = time.perf_counter()
    with RunContext(
        "scale",
        Storage(root=str(folder)),
        settings.engine,
        make_engine=lambda *_: ScriptedEngine(speak),
        progress=progress,
        run_step=plainly,
    ) as ctx:
        base, problems = ctx.resources.model("tiny"), problems_of(ctx, traces // SAMPLES)
        curated = CURATE[kind](ctx, settings, base, problems)
        counts = {entry.step: entry.artifact.count for entry in ctx.ledger}
        steps = {step: {"rows": count.rows_out, "seconds": count.seconds} for step, count in counts.items() if count}
        ids = token_bytes(curated.uri)
    return {
        "traces": traces,
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes_per_token": ids,
        "steps": steps,
    }


def file_seconds(folder: Path, count: int = 1000) -> dict[str, float]:
    """Processor seconds to write and read a file of traces: medians of five rounds. `lists`: with ids as Python
    integers, as before there were arrays."""
    model = Checkpoint.open(TINY_MODEL)
    rows = [_trace(number, thinking(model, number % VARIANTS), model) for number in range(count)]
    listed = [ListTrace.model_validate(row.model_dump(mode="json")) for row in rows]
    path, lists = folder / "rows.parquet", folder / "lists.parquet"

    def write() -> None:
        with RowFile() as file:
            file.extend(rows)
            shutil.copy(file.finish(), path)

    def write_lists() -> None:
        pq.write_table(pa.Table.from_pylist([row.model_dump(mode="json") for row in listed]), lists)

    def read_lists() -> None:
        for row in pq.read_table(lists).to_pylist():
            ListTrace.model_validate(row)

    return {
        "write": processor_seconds(write),
        "read": processor_seconds(lambda: list(read_rows(path, Trace))),
        "write_lists": processor_seconds(write_lists),
        "read_lists": processor_seconds(read_lists),
    }


class ListTrace(Record):
    """A trace whose ids are Python integers."""

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    text: str
    truncated: bool
    verdict: Verdict


def _trace(number: int, ids: TokenIds, model: Checkpoint) -> Trace:
    text = model.decode(ids)
    return Trace(problem_id=f"p{number}", sample=0, token_ids=ids, text=text, truncated=False, verdict=Verdict.RIGHT)


def processor_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return median(seconds)


def token_bytes(file: str) -> dict[str, float]:
    """Bytes for each token in a file of traces, before and after compression."""
    metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [
        group.column(index)
        for group in groups
        for index in range(group.num_columns)
        if group.column(index).path_in_schema.startswith("token_ids")
    ]
    tokens = sum(column.num_values for column in columns)
    return {
        "plain": sum(column.total_uncompressed_size for column in columns) / tokens,
        "compressed": sum(column.total_compressed_size for column in columns) / tokens,
    }


def main(pipeline: str = "dto", traces: str = "", folder: str = "") -> None:
    if traces:
        print(json.dumps(run(PIPELINES[pipeline], int(traces), Path(folder))))
        return
    sizes = []
    for count in (2_000, 30_000):
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "bench.scale", pipeline, str(count), place]
            sizes.append(json.loads(subprocess.check_output(command)))
        print(json.dumps(sizes[-1], indent=2), flush=True)
    result: dict[str, Any] = {"sizes": sizes} | machine()
    if pipeline == "dto":
        with tempfile.TemporaryDirectory() as place:
            result["file_of_1000_traces"] = file_seconds(Path(place))
    (RESULTS / ("scale.json" if pipeline == "dto" else f"scale-{pipeline}.json")).write_text(
        json.dumps(result, indent=2) + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
