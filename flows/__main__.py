"""The command line: `python -m flows run dto --preset tiny --set seed=1`.

Knows: words on the command line, settings, how to tell a person what went wrong. Must not know: what flows do.
Flows are imported only once the settings are right, so that a mistake is told in a second.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

from conf.errors import ReadableError
from conf.load import load
from conf.settings import Claims, Dto, MarkerReport, Section, TinyModel

PIPELINES: dict[str, type[Section]] = {"claims": Claims, "dto": Dto, "markers": MarkerReport, "tiny-model": TinyModel}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        _run(options.pipeline, load(PIPELINES[options.pipeline], options.preset, tuple(options.set)))
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
    return parser.parse_args(arguments)


def _deserves_a_trace(record: logging.LogRecord) -> bool:
    """Prefect logs every exception with its stack; what a ReadableError has to say is told by `main`."""
    return not (record.exc_info and isinstance(record.exc_info[1], ReadableError))


def _run(pipeline: str, settings: Section) -> None:
    from flows.prefect_server import prefect_server

    home = Path(os.environ.get("PREFECT_HOME", "runs/prefect")).resolve()
    with prefect_server(home):
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(_deserves_a_trace)
        module = importlib.import_module(f"flows.{pipeline.replace('-', '_')}")
        getattr(module, pipeline.replace("-", "_"))(settings)


if __name__ == "__main__":
    sys.exit(main())
