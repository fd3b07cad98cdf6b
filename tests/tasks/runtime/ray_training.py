"""Runs the job in a folder on two nodes: `python -m tests.tasks.runtime.ray_training ADDRESS FOLDER`."""

import sys
from pathlib import Path

from conf.workers import Workers
from models.training.launcher import JOB, TrainJob
from tasks.runtime.ray_training import RayTrainer

if __name__ == "__main__":
    workers, folder = Workers(kind="ray", ray_address=sys.argv[1], training_nodes=2), Path(sys.argv[2])
    job = TrainJob.model_validate_json((folder / JOB).read_text())
    RayTrainer(workers, print)(job, folder, lambda *at: print(*at, flush=True))
