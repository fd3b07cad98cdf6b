"""Runs the job in a folder on two nodes: `python -m tests.tasks.runtime.ray_training ADDRESS FOLDER`."""

import sys
from functools import partial
from pathlib import Path

from conf.workers import Workers
from models.training.launcher import JOB, TrainJob, train
from tasks.runtime.ray_training import RayTraining

if __name__ == "__main__":
    workers, folder = Workers(kind="ray", ray_address=sys.argv[1], training_nodes=2), Path(sys.argv[2])
    job = TrainJob.model_validate_json((folder / JOB).read_text())
    train(job, folder, lambda *at: print(*at), launch=partial(RayTraining, workers, print))
