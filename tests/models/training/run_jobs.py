"""Runs training jobs one after the other in this process: `python -m tests.models.training.run_jobs JOB …`."""

import sys
from pathlib import Path

from models.training.train import run

if __name__ == "__main__":
    for job in sys.argv[1:]:
        run(Path(job))
