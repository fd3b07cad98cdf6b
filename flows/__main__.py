"""The command line: `python -m flows run dto --preset tiny --set seed=1`.

Knows: words on the command line, settings, how to tell a person what went wrong. Must not know: what flows do.
Flows are imported only once the settings are right, so that a mistake is told in a second.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from conf.load import SettingsError, load
from conf.settings import Dto, Section, TinyModel

PIPELINES: dict[str, type[Section]] = {"dto": Dto, "tiny-model": TinyModel}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        settings = load(PIPELINES[options.pipeline], options.preset, tuple(options.set))
    except SettingsError as error:
        return _tell(error)
    return _run(options.pipeline, settings)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Teach reasoning models to think less.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a pipeline")
    run.add_argument("pipeline", choices=sorted(PIPELINES))
    run.add_argument("--preset", default="tiny", help="a bundled preset or a path to a .toml (default: tiny)")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change one setting")
    return parser.parse_args(arguments)


def _run(pipeline: str, settings: Section) -> int:
    from flows.prefect_server import prefect_server

    home = Path(os.environ.get("PREFECT_HOME", "runs/prefect")).resolve()
    with prefect_server(home):
        from models.checkpoint import CheckpointError
        from models.trainer import TrainingFailed
        from models.vllm_server import ServerFailed, SwapNotProven

        flow = getattr(importlib.import_module(f"flows.{pipeline.replace('-', '_')}"), pipeline.replace("-", "_"))
        try:
            flow(settings)
        except (CheckpointError, TrainingFailed, ServerFailed, SwapNotProven) as error:
            return _tell(error)
    return 0


def _tell(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
