"""The command line: `python -m flows run dto --preset tiny --set seed=1`.

Knows: words on the command line, settings, how to tell a person what went wrong. Must not know: what flows do.
Flows are imported only once the settings are right, so that a mistake is told in a second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.engine import Engine
from conf.errors import ReadableError
from conf.load import load
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed
from conf.prompts import Prompted
from conf.tiny_model import TinyModel

PLAIN_WIDTH = 160
"""Columns of a table, whatever the terminal: fingerprints are not to be cut."""
PIPELINES: dict[str, type[Settings]] = {
    "claims": MultiSeed,
    "cot-distillation": CotDistillation,
    "dto": Dto,
    "long-short": LongShort,
    "markers": MarkerReport,
    "tiny-model": TinyModel,
}


PROMPTED = [name for name, settings in PIPELINES.items() if issubclass(settings, Prompted)]


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        options.act(options)
    except ReadableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Teach reasoning models to think less.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a pipeline")
    run.add_argument("pipeline", choices=sorted(PIPELINES))
    run.add_argument("--preset", default="tiny", help="a bundled preset or a path to a .toml (default: tiny)")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change one setting")
    run.set_defaults(act=lambda o: _run(o.pipeline, load(PIPELINES[o.pipeline], o.preset, tuple(o.set))))
    fingerprint = commands.add_parser("fingerprint", help="the name under which servers elsewhere must serve a model")
    fingerprint.add_argument("model", help="as in the settings: a folder, owner/name on the hub, or tiny")
    fingerprint.add_argument("--dtype", default=Engine().dtype, help="as in the settings (default: %(default)s)")
    fingerprint.set_defaults(act=_fingerprint)
    check = commands.add_parser("check-model", help="what a run would make of a model; starts nothing")
    check.add_argument("model", help="as in the settings: a folder, owner/name on the hub, or tiny")
    check.add_argument(
        "--pipeline", choices=sorted(PROMPTED), default="dto", help="whose settings (default: %(default)s)"
    )
    check.add_argument("--preset", default="tiny", help="a bundled preset or a path to a .toml (default: tiny)")
    check.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change one setting")
    check.set_defaults(act=_check_model)
    states = {
        "chat": "ask a run's two models on the terminal",
        "serve": "put them behind an OpenAI-compatible endpoint",
    }
    for name, about in states.items():
        state = commands.add_parser(name, help=about)
        state.add_argument("pipeline", choices=["long-short"])
        state.add_argument("--model", default="runs/latest", help="the run's folder (default: %(default)s)")
        state.add_argument(
            "--servers",
            nargs=2,
            default=[],
            metavar=("LONG_URL", "SHORT_URL"),
            help="where vLLM serves the two under their fingerprints (default: start two)",
        )
        state.set_defaults(act=_chat if name == "chat" else _serve)
        if name == "serve":
            state.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)")
    store = commands.add_parser("store", help="look after the rollout store")
    store.add_argument("--url", default="sqlite:///runs/rollouts.sqlite", help="SQLAlchemy URL (default: %(default)s)")
    deeds = store.add_subparsers(dest="deed", required=True)
    deeds.add_parser("stats", help="what it holds, by model and purpose").set_defaults(act=_store_stats)
    deeds.add_parser("verify", help="whether all that it holds is whole").set_defaults(act=_store_verify)
    gc = deeds.add_parser("gc", help="remove old completions")
    gc.add_argument("--days", type=float, required=True, help="keep what was stored in so many days")
    gc.add_argument("--keep", action="append", default=[], metavar="FINGERPRINT", help="keep this model's, however old")
    gc.set_defaults(act=_store_gc)
    _add_tools(commands)
    options, rest = parser.parse_known_args(arguments)
    if rest:  # told by their names: a value may be a key
        names = " ".join(re.match(r"-*[\w.]*", word)[0] for word in rest if word.startswith("-"))  # type: ignore[index]
        parser.error(f"unrecognized arguments: {names or len(rest)}; settings are changed by --set section.field=value")
    return options


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands of `flows.tools`, which is imported only for them: it loads the answer check."""
    answers = commands.add_parser("check-answers", help="say of each answer of a file whether it is right")
    answers.add_argument("file", help="JSON Lines with gold, said and, where there are options, choices; - reads stdin")
    answers.set_defaults(act=lambda o: _tools().check_answers(o.file))
    segment = commands.add_parser("segment-traces", help="cut texts into segments: text, language -> segments")
    segment.add_argument("file", help="JSON Lines, or - for standard input")
    segment.add_argument("--min-chars", type=int, default=0, help="join shorter segments to the next (default: 0)")
    segment.set_defaults(act=lambda o: _tools().segment_traces(o.file, o.min_chars))
    overlap = commands.add_parser("find-overlap", help="find which problems of A stand in B, too: problem -> overlap")
    overlap.add_argument("a", metavar="A", help="JSON Lines with problem, text or question; or - for standard input")
    overlap.add_argument("b", metavar="B", help="the same")
    overlap.set_defaults(act=lambda o: _tools().find_overlap(o.a, o.b))


def _tools() -> ModuleType:
    return importlib.import_module("flows.tools")


def _fingerprint(options: argparse.Namespace) -> None:
    from models.checkpoints.checkpoint import Checkpoint, found_checkpoint

    print(Checkpoint.open(found_checkpoint(options.model), options.dtype).fingerprint)


def _check_model(options: argparse.Namespace) -> None:
    model = f"model={json.dumps(options.model)}"
    settings = load(PIPELINES[options.pipeline], options.preset, (*options.set, model))
    from flows.check_model import check_model

    check_model(settings)


def _chat(options: argparse.Namespace) -> None:
    from flows.two_model_chat import chat

    chat(Path(options.model), options.servers)


def _serve(options: argparse.Namespace) -> None:
    from flows.two_model_chat import serve

    serve(Path(options.model), options.servers, options.port)


def _store_stats(options: argparse.Namespace) -> None:
    from models.inference.rollout_store import existing_store

    table = Table("model", "purpose", "completions", "MB of tokens", "last stored (UTC)")
    for held in existing_store(options.url).summarise():
        last = datetime.fromtimestamp(held.last, UTC).strftime("%Y-%m-%d %H:%M") if held.last else "before version 2"
        table.add_row(held.model, held.purpose, f"{held.completions:,}", f"{held.bytes / 1e6:.1f}", last)
    Console(width=PLAIN_WIDTH).print(table)


def _store_verify(options: argparse.Namespace) -> None:
    from models.inference.rollout_store import StoreError, existing_store

    faults = existing_store(options.url).find_faults()
    if faults:
        raise StoreError("\n".join([f"{options.url}: {len(faults)} faults", *faults[:20]]))
    print("all completions are whole, and no sample is missing before another")


def _store_gc(options: argparse.Namespace) -> None:
    from models.inference.rollout_store import existing_store

    gone = existing_store(options.url).delete_unused(options.keep, time.time() - options.days * 86_400)
    print(f"{gone:,} completions removed")


def _deserves_a_trace(record: logging.LogRecord) -> bool:
    """Prefect logs every exception with its stack; what a ReadableError has to say is told by `main`."""
    return not (record.exc_info and isinstance(record.exc_info[1], ReadableError))


def _run(pipeline: str, settings: Settings) -> None:
    from flows.prefect_server import prefect_server

    home = Path(os.environ.get("PREFECT_HOME", "runs/prefect")).resolve()
    with prefect_server(home):
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(_deserves_a_trace)
        module = importlib.import_module(f"flows.{pipeline.replace('-', '_')}")
        getattr(module, pipeline.replace("-", "_"))(settings)


if __name__ == "__main__":
    sys.exit(main())
