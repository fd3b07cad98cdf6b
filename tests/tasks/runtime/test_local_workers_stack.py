"""Workers in processes of this machine."""

import os
import stat
import subprocess
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import psutil
import pytest

from conf.engine import Engine, Storage
from conf.prompts import Prompt
from conf.retries import Retries
from conf.workers import Workers
from models.inference.devices import TooFewGpus
from models.inference.stored_only import StoredOnly
from tasks.runtime import local_workers
from tasks.runtime.local_workers import LocalWorkers
from tasks.runtime.shard_worker import WorkerPlan
from tests.services import REPOSITORY
from tests.waiting import until


def plan(folder: Path, **workers: int) -> WorkerPlan:
    engine = Engine(workers=Workers(kind="processes", **workers))  # type: ignore[arg-type]
    storage = Storage(root=str(folder), rollout_store=f"sqlite:///{folder}/store.sqlite")
    return WorkerPlan("run", storage, engine, Prompt(), Retries(), StoredOnly, Path.cwd(), folder)


def test_no_other_user_reaches_a_worker(tmp_path: Path):
    worker = LocalWorkers(plan(tmp_path), lambda: None).start(0)
    address = Path(worker._manager.address)  # type: ignore[attr-defined]
    assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    with pytest.raises(AuthenticationError):
        Client(str(address), authkey=b"guessed")
    worker.end()


def test_workers_end_with_the_run_that_is_killed(tmp_path: Path):
    """Also one that has nothing to do."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tests.tasks.runtime.test_local_workers_stack import LocalWorkers, plan\n"
        "if __name__ == '__main__':\n"
        "    worker = LocalWorkers(plan(Path(sys.argv[1])), lambda: None).start(0)\n"
        "    print(worker.process, flush=True)\n"
        "    time.sleep(600)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout
        pid = int(run.stdout.readline().rpartition("/")[2])
        assert psutil.pid_exists(pid)
        run.kill()
    until(lambda: not psutil.pid_exists(pid), "the worker to end")


def test_each_worker_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_workers, "visible_gpus", lambda: tuple("02467"))
    seen = []
    monkeypatch.setattr(
        local_workers, "_LocalWorker", lambda plan, number, environment, on_end: seen.append(environment)
    )
    place = LocalWorkers(plan(tmp_path, gpus_each=2), lambda: None)
    assert (place.count, place.gpus_each) == (2, 2)
    for number in range(2):
        place.start(number)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["0,2", "4,6"]
    with pytest.raises(TooFewGpus, match=r"needs 6 GPUs .count × gpus_each., and 5 are there"):
        LocalWorkers(plan(tmp_path, count=3, gpus_each=2), lambda: None)
    with pytest.raises(TooFewGpus, match="needs 8 GPUs"):
        LocalWorkers(plan(tmp_path, gpus_each=8), lambda: None)
