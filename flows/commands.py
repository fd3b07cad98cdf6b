"""The commands of `flows.cli`: each takes the parsed options, and imports what it needs when it is called."""

from __future__ import annotations

import json
import logging
import os
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conf.base import Settings
from conf.errors import ReadableError
from conf.load import assign, load
from conf.pipelines import PIPELINES

PLAIN_WIDTH = 160
"""Columns of a table, whatever the terminal: fingerprints must not be cut."""


def run(options: Namespace) -> None:
    """Runs a pipeline under a Prefect server of its own."""
    loaded = _load(options)
    from flows.prefect_server import prefect_server

    # Progress is printed here already; Prefect's copies of these lines are for its page.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    home = Path(os.environ.get("PREFECT_HOME", "runs/prefect")).resolve()
    with prefect_server(home):
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(_needs_traceback)
        from flows.pipeline import pipeline_flow

        pipeline_flow(options.pipeline)(settings=loaded)


def plan(options: Namespace) -> None:
    """Prints what a run would do and cost."""
    loaded = _load(options)
    from flows.plan import print_plan

    print_plan(loaded, options.gpus)


def deploy(options: Namespace) -> None:
    """Registers a work pool and deployments with the Prefect server at PREFECT_API_URL."""
    from flows.deploy import deploy, deployment
    from flows.pipeline import pipeline_flow

    if "PREFECT_API_URL" not in os.environ:
        raise ReadableError(
            "PREFECT_API_URL is not set: start a server with `prefect server start` and give its address"
        )
    variables = assign({"working_dir": str(Path.cwd())} if options.type == "process" else {}, options.job, "--job")
    pipelines = [options.pipeline] if options.pipeline else list(PIPELINES)
    parameters = _parameters(options) if options.pipeline else {}
    named = deploy(
        options.pool,
        options.type,
        [
            deployment(pipeline_flow(name), options.name, options.pool, parameters, variables, options.cron)
            for name in pipelines
        ],
    )
    for name in named:
        print(f"deployed {name}")
    print(f"start a worker in this environment: prefect worker start --pool {options.pool} --type {options.type}")


def _parameters(options: Namespace) -> dict[str, Any]:
    """What the form of a deployment starts with: a bundled preset, or all settings of one that was changed."""
    if not options.set and not _preset(options).endswith(".toml"):
        return {"preset": _preset(options)}
    return {"settings": _load(options).model_dump(mode="json")}


def _load(options: Namespace, *more: str) -> Settings:
    return load(PIPELINES[options.pipeline], _preset(options), (*options.set, *more))


def _preset(options: Namespace) -> str:
    """The one that is given, or the pipeline's default."""
    return options.preset or PIPELINES[options.pipeline].model_fields["preset"].default


def _needs_traceback(record: logging.LogRecord) -> bool:
    """Prefect logs every exception with its stack; `flows.cli.main` prints a ReadableError in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], ReadableError))


def settings(options: Namespace) -> None:
    """Prints every setting of a pipeline, or the JSON schema of its presets."""
    from flows.settings_table import print_schema, print_settings

    kind = PIPELINES[options.pipeline]
    if options.schema:
        print_schema(kind)
    else:
        print_settings(kind, _preset(options), options.set, options.section)


def presets(_: Namespace) -> None:
    """Prints the bundled presets of each pipeline, with the first comment of each file."""
    from flows.settings_table import print_presets

    print_presets()


def watch(options: Namespace) -> None:
    from flows.watch import watch as show

    show(Path(options.run))


def view(options: Namespace) -> None:
    """Serves the page of a run until Ctrl-C."""
    from tasks.reports.page.server import serve_page

    with serve_page(Path(options.run), options.port) as server:
        print(f"http://127.0.0.1:{server.server_port}/ shows {options.run} (Ctrl-C ends)", flush=True)
        server.serve_forever()


def report(options: Namespace) -> None:
    """Prints or writes what a finished run measured."""
    from tasks.reports.show_report import show_report

    show_report(Path(options.run), options.format)


def fingerprint(options: Namespace) -> None:
    """Prints the name under which servers elsewhere must serve a model."""
    from models.checkpoints.checkpoint import Checkpoint, found_checkpoint

    print(Checkpoint.open(found_checkpoint(options.model), options.dtype).fingerprint)


def export(options: Namespace) -> None:
    """Writes a model as one folder, adapters merged."""
    from models.checkpoints.checkpoint import Checkpoint, found_checkpoint
    from models.training.export import export as write

    write(Checkpoint.open(found_checkpoint(options.model)), Path(options.folder), options.dtype)
    print(f"{options.folder} holds the whole model in {options.dtype}")


def check_model(options: Namespace) -> None:
    """Prints how a run would use a model: prompt, tags, end tokens, sizes, memory."""
    loaded = _load(options, f"model={json.dumps(options.model)}")
    from flows.check_model import check_model as check

    check(loaded)


def doctor(options: Namespace) -> None:
    """Prints whether this machine can do a run."""
    loaded = _load(options)
    from flows.doctor.report import check_machine

    check_machine(loaded)


def check_answers(options: Namespace) -> None:
    from flows.tools import check_answers as check

    check(options.file)


def segment_traces(options: Namespace) -> None:
    from flows.tools import segment_traces as segment

    segment(options.file, options.min_chars)


def find_overlap(options: Namespace) -> None:
    from flows.tools import find_overlap as find

    find(options.a, options.b)


def chat(options: Namespace) -> None:
    from flows.two_model_chat import chat as start

    start(Path(options.model), options.servers)


def serve(options: Namespace) -> None:
    from flows.two_model_server import serve as start

    start(Path(options.model), options.servers, options.host, options.port, options.workers)


def store_stats(options: Namespace) -> None:
    from models.inference.rollout_store import existing_store

    table = Table("model", "purpose", "completions", "MB of tokens", "last stored (UTC)")
    for held in existing_store(options.url).summarise():
        last = datetime.fromtimestamp(held.last, UTC).strftime("%Y-%m-%d %H:%M") if held.last else "before version 2"
        table.add_row(held.model, held.purpose, f"{held.completions:,}", f"{held.bytes / 1e6:.1f}", last)
    Console(width=PLAIN_WIDTH).print(table)


def store_verify(options: Namespace) -> None:
    from models.inference.rollout_store import StoreError, existing_store

    faults = existing_store(options.url).find_faults()
    if faults:
        raise StoreError("\n".join([f"{options.url}: {len(faults)} faults", *faults[:20]]))
    print("all completions are whole, and no sample is missing before another")


def store_gc(options: Namespace) -> None:
    from models.inference.rollout_store import existing_store

    gone = existing_store(options.url).delete_unused(options.keep, time.time() - options.days * 86_400)
    print(f"{gone:,} completions removed")


def cache_ls(options: Namespace) -> None:
    from flows.cache_commands import list_results

    list_results(options.root, options.step)


def cache_explain(options: Namespace) -> None:
    from flows.cache_commands import explain

    explain(options.root, options.what, options.against)


def cache_gc(options: Namespace) -> None:
    from flows.cache_commands import collect_garbage

    collect_garbage(options.root, options.days, options.models, options.dry_run)


def cache_pin(options: Namespace) -> None:
    from flows.cache_commands import pin

    pin(options.root, options.what, options.note)


def cache_unpin(options: Namespace) -> None:
    from flows.cache_commands import unpin

    unpin(options.root, options.what)
