"""A run of DTO whose workers sample with the paced engine, in a process of its own.

    python -m tests.flows.workers_run SETTING=VALUE …

Prints its figures as JSON.
"""

import json
import sys

from conf.dto import Dto
from conf.load import load
from flows.dto import run_dto
from tasks.runtime.context import RunContext
from tasks.runtime.progress import Progress
from tests.flows.paced_engine import make_engine
from tests.flows.test_dto_stack import SMALL
from tests.flows.world import pretend_training, report_of, without_prefect


def main(*changes: str) -> None:
    settings = load(Dto, "tiny", (*SMALL, *changes))
    with (
        without_prefect(),
        RunContext(
            "dto",
            settings.storage,
            settings.engine,
            prompt=settings.prompt,
            make_engine=make_engine,
            trainer=pretend_training,
            progress=Progress(),
        ) as ctx,
    ):
        report = report_of(run_dto, ctx, settings)
        digests = [(entry.step, entry.artifact.digest) for entry in ctx.ledger]
    made = [line["stage"] for line in report["ledger"] if not line["cached"]]
    gpus = [entry.artifact.count.gpus for entry in ctx.ledger if entry.artifact.count]
    print(json.dumps({"made": made, "digests": digests, "warnings": report["warnings"], "gpus": max(gpus)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
