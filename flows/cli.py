"""The command line: `brevity run dto --preset tiny --set seed=1`.

Only settings are imported to read it; each command imports what it needs. A mistake is reported within a second.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, get_args

from conf.base import RenamedSetting
from conf.describe import setting_names
from conf.engine import Engine, Storage
from conf.errors import ReadableError
from conf.job_templates import POOL_TYPES
from conf.load import presets
from conf.multi_seed import present_name
from conf.pipelines import PIPELINES
from conf.prompts import Prompted
from conf.redaction import redacted
from flows import commands

ALL = sorted(PIPELINES)
PROMPTED = sorted(name for name, settings in PIPELINES.items() if issubclass(settings, Prompted))
FORMATS = ("table", "md", "csv", "parquet")
DTYPES = get_args(Engine.model_fields["dtype"].annotation)
MODEL = "as in the settings: a folder, owner/name on the hub, or tiny"
COMPLETION = """Completion with the Tab key: eval "$(register-python-argcomplete brevity)" in ~/.bashrc or ~/.zshrc."""
SCHEMA = """Editors that read JSON schemas of TOML (taplo, Even Better TOML) complete a preset:
  brevity settings dto --schema > dto.schema.json
and as the preset's first line:
  #:schema ./dto.schema.json"""

MAX_DAYS = 100_000
GC = """Removes results that no run has made or taken from the cache for --days days. Scratch folders (unfinished work)
and leftovers of killed runs go when they are that old. Pinned results stay, with all results that they were made from.
Of other results, only their own last use counts. A run may read a result until its end, so --days must be longer than
your longest run. With --models N only trained models go: all but the N used last, of those that were not used for
--days days (`gc --days 2 --models 5` beside `gc --days 30` bounds the disk that models take). A checkpoint that
settings name by its path is not seen: pin it. With a URL as root, scratch folders and lists of skipped rows are those
of this machine, under runs."""

Commands = Any
"""argparse's sub-parsers, whose class is private."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without what may be a key."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {redacted(message)}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a mistake of the user, 130 for Ctrl-C. Raises SystemExit for a command line
    that cannot be read, and for --help."""
    with _renamings_on_stderr():
        options = _parse(arguments)
        try:
            options.act(options)
        except ReadableError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped; what was finished is kept, the same command continues from there", file=sys.stderr)
            return 130
    return 0


@contextmanager
def _renamings_on_stderr() -> Iterator[None]:
    """Prints each RenamedSetting once, as one line; other warnings go their usual way."""
    with warnings.catch_warnings():
        usual, told = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, RenamedSetting):
                usual(message, category, *where, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(f"warning: {message}; the old name will be an error in the next version", file=sys.stderr)

        warnings.simplefilter("always", RenamedSetting)
        warnings.showwarning = show
        yield


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(arguments)
    if rest:  # only names are shown: a value may be a key
        names = " ".join(re.match(r"-*[\w.]*", word)[0] for word in rest if word.startswith("-"))  # type: ignore[index]
        parser.error(f"unrecognized arguments: {names or len(rest)}; settings are changed by --set section.field=value")
    return options


def _parser() -> Parser:
    name = "python -m flows" if Path(sys.argv[0]).name == "__main__.py" else "brevity"
    parser = Parser(prog=name, description="Teach reasoning models to think less.", epilog=COMPLETION)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_run,
        _add_plan,
        _add_deploy,
        _add_doctor,
        _add_settings,
        _add_report,
        _add_models,
        _add_tools,
        _add_store,
        _add_cache,
        _add_two_models,
    ):
        add(subparsers)
    return parser


def _add_pipeline(parser: argparse.ArgumentParser, name: str, names: Sequence[str], **more: Any) -> None:
    """The pipeline, `--preset` and `--set`, with completion."""
    parser.add_argument(name, type=present_name, choices=names, metavar="PIPELINE", **more)
    preset = parser.add_argument("--preset", help="bundled preset or path to a .toml (default: tiny; multi-seed: dto)")
    change = parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    change.help = "change one setting; may be given several times"
    preset.completer = _complete_preset  # type: ignore[attr-defined]
    change.completer = _complete_setting  # type: ignore[attr-defined]


def _complete_preset(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Bundled presets of the pipeline, and files."""
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter(["toml"])(prefix)
    return [*presets(PIPELINES[parsed_args.pipeline]), *map(str, files)]


def _complete_setting(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    del prefix
    return [f"{name}=" for name in setting_names(PIPELINES[parsed_args.pipeline])]


def _add_run(subparsers: Commands) -> None:
    run = subparsers.add_parser("run", help="run a pipeline")
    _add_pipeline(run, "pipeline", ALL, help=", ".join(ALL))
    run.set_defaults(act=commands.run)


def _add_plan(subparsers: Commands) -> None:
    plan = subparsers.add_parser("plan", help="list the steps of a run, what is cached, and what the rest will cost")
    _add_pipeline(plan, "pipeline", ALL, help=", ".join(ALL))
    plan.add_argument("--gpus", type=_number, metavar="N", help="of the node that will run (default: this machine's)")
    plan.set_defaults(act=commands.plan)


def _add_deploy(subparsers: Commands) -> None:
    deploy = subparsers.add_parser(
        "deploy", help="register pipelines with a Prefect server: forms, work pool, schedule (docs/operations.md)"
    )
    _add_pipeline(deploy, "pipeline", ALL, nargs="?", help=f"one of {', '.join(ALL)} (default: all)")
    deploy.add_argument("--name", default="default", help="name of the deployment (default: %(default)s)")
    deploy.add_argument("--pool", default="brevity", help="work pool, made where it is missing (default: %(default)s)")
    deploy.add_argument("--type", choices=POOL_TYPES, default="process", help="of the pool (default: %(default)s)")
    deploy.add_argument(
        "--cron", default="0 2 * * *", help="schedule in UTC, off until switched on (default: %(default)s)"
    )
    job = deploy.add_argument("--job", action="append", default=[], metavar="VARIABLE=VALUE")
    job.help = "job variable of the pool's template, such as image=, gpu_count= or working_dir="
    deploy.set_defaults(act=commands.deploy)


def _add_doctor(subparsers: Commands) -> None:
    doctor = subparsers.add_parser("doctor", help="check whether this machine can do a run; starts nothing")
    _add_pipeline(doctor, "pipeline", ALL, nargs="?", default="dto", help=f"one of {', '.join(ALL)} (default: dto)")
    doctor.set_defaults(act=commands.doctor)


def _add_settings(subparsers: Commands) -> None:
    settings = subparsers.add_parser(
        "settings",
        help="list every setting of a pipeline: type, bounds, default, value, origin",
        epilog=SCHEMA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_pipeline(settings, "pipeline", ALL, help=", ".join(ALL))
    settings.add_argument("section", nargs="?", default="", metavar="SECTION", help="only this one, such as engine")
    settings.add_argument("--schema", action="store_true", help="print the JSON schema of the pipeline's presets")
    settings.set_defaults(act=commands.settings)
    listed = subparsers.add_parser("presets", help="list the bundled presets of each pipeline")
    listed.set_defaults(act=commands.presets)


def _add_report(subparsers: Commands) -> None:
    report = subparsers.add_parser("report", help="show the scores and costs of a run")
    report.add_argument("run", metavar="RUN", help="the run's folder, such as runs/latest")
    report.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    report.set_defaults(act=commands.report)
    watch = subparsers.add_parser("watch", help="show what a run is doing: stage, time left, newest traces")
    watch.add_argument("run", metavar="RUN", nargs="?", default="runs", help="a run, or all (default: %(default)s)")
    watch.set_defaults(act=commands.watch)
    view = subparsers.add_parser("view", help="serve the page of a run on this machine: figures and thoughts")
    view.add_argument("run", metavar="RUN", nargs="?", default="runs/latest", help="default: %(default)s")
    view.add_argument("--port", type=int, default=0, help="default: a free one")
    view.set_defaults(act=commands.view)


def _add_models(subparsers: Commands) -> None:
    fingerprint = subparsers.add_parser("fingerprint", help="print the name under which servers must serve a model")
    fingerprint.add_argument("model", help=MODEL)
    fingerprint.add_argument("--dtype", default=Engine().dtype, help="as in the settings (default: %(default)s)")
    fingerprint.set_defaults(act=commands.fingerprint)
    export = subparsers.add_parser("export", help="write a trained model as one folder, adapters merged")
    export.add_argument("model", help="a trained model's folder, which the run's report names")
    export.add_argument("folder", help="where to write; must not exist")
    export.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    export.set_defaults(act=commands.export)
    check = subparsers.add_parser("check-model", help="show how a run would use a model; starts nothing")
    check.add_argument("model", help=MODEL)
    _add_pipeline(check, "--pipeline", PROMPTED, default="dto", help=f"one of {', '.join(PROMPTED)} (default: dto)")
    check.set_defaults(act=commands.check_model)


def _add_tools(subparsers: Commands) -> None:
    answers = subparsers.add_parser("check-answers", help="say of each answer of a file whether it is right")
    answers.add_argument("file", help="JSON Lines with gold, said and, where there are options, choices; - reads stdin")
    answers.set_defaults(act=commands.check_answers)
    segment = subparsers.add_parser("segment-traces", help="cut texts into segments: text, language -> segments")
    segment.add_argument("file", help="JSON Lines, or - for standard input")
    segment.add_argument("--min-chars", type=int, default=0, help="join shorter segments to the next (default: 0)")
    segment.set_defaults(act=commands.segment_traces)
    overlap = subparsers.add_parser("find-overlap", help="find which problems of A are also in B: problem -> overlap")
    overlap.add_argument("a", metavar="A", help="JSON Lines with problem, text or question; or - for standard input")
    overlap.add_argument("b", metavar="B", help="the same")
    overlap.set_defaults(act=commands.find_overlap)


def _add_store(subparsers: Commands) -> None:
    store = subparsers.add_parser("store", help="inspect and clean the rollout store")
    store.add_argument("--url", default="sqlite:///runs/rollouts.sqlite", help="SQLAlchemy URL (default: %(default)s)")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    stats = actions.add_parser("stats", help="count completions by model and purpose")
    stats.set_defaults(act=commands.store_stats)
    verify = actions.add_parser("verify", help="check that nothing is damaged or missing")
    verify.set_defaults(act=commands.store_verify)
    gc = actions.add_parser("gc", help="remove old completions")
    gc.add_argument("--days", type=float, required=True, help="keep completions stored within this many days")
    gc.add_argument("--keep", action="append", default=[], metavar="FINGERPRINT", help="keep this model's, however old")
    gc.set_defaults(act=commands.store_gc)


def _add_cache(subparsers: Commands) -> None:
    cache = subparsers.add_parser("cache", help="inspect and clean the results of steps")
    cache.add_argument("--root", default=Storage().root, help="as storage.root: folder or URL (default: %(default)s)")
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("ls", help="list results with size and last use")
    listed.add_argument("--step", default="", help="only those of this step, such as train-simpo")
    listed.set_defaults(act=commands.cache_ls)
    explain = actions.add_parser("explain", help="show what a result was made from, or why a step ran again")
    explain.add_argument("what", metavar="KEY_OR_STEP", help="key: its recipe; step: how its newest result differs")
    explain.add_argument("--against", default="", metavar="KEY", help="compare with this one, not the one before")
    explain.set_defaults(act=commands.cache_explain)
    gc = actions.add_parser("gc", help="remove what no run has used lately", description=GC)
    gc.add_argument("--days", type=_days, required=True, help="keep what was used within this many days")
    gc.add_argument("--models", type=_number, metavar="N", help="remove trained models alone, all but the N used last")
    gc.add_argument("--dry-run", action="store_true", help="only print what would go")
    gc.set_defaults(act=commands.cache_gc)
    _add_pins(actions)


def _add_pins(actions: Commands) -> None:
    pin = actions.add_parser("pin", help="keep a result, or all results of a run, from gc")
    pin.add_argument("--note", default="", help="why; shown by ls")
    pin.set_defaults(act=commands.cache_pin)
    unpin = actions.add_parser("unpin", help="remove pins")
    unpin.set_defaults(act=commands.cache_unpin)
    for parser in (pin, unpin):
        parser.add_argument("what", metavar="KEY_OR_RUN", help="beginning of a key, or a run's folder")


def _days(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= MAX_DAYS:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_DAYS:,}")


def _count(text: str) -> int:
    return _number(text) or _number("")


def _number(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError("must be a whole number, 0 or more")


def _add_two_models(subparsers: Commands) -> None:
    chat = subparsers.add_parser("chat", help="ask a run's two models on the terminal")
    chat.set_defaults(act=commands.chat)
    serve = subparsers.add_parser("serve", help="serve a run's two models behind an OpenAI-compatible endpoint")
    serve.set_defaults(act=commands.serve)
    for parser in (chat, serve):
        parser.add_argument("pipeline", choices=["long-short"])
        parser.add_argument("--model", default="runs/latest", help="the run's folder (default: %(default)s)")
        parser.add_argument(
            "--servers",
            nargs=2,
            default=[],
            metavar=("LONG_URL", "SHORT_URL"),
            help="where vLLM serves the two under their fingerprints (default: start two)",
        )
    serve.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)")
    serve.add_argument(
        "--host", default="127.0.0.1", help="other than loopback needs BREVITY_SERVE_KEY (default: %(default)s)"
    )
    serve.add_argument("--workers", type=_count, default=1, help="processes that answer (default: %(default)s)")
