"""A guarded child process ends with its owner, however the owner ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from models.processes import GuardedProcess

# Two grandchildren: one in our group, one in its own session, as a server's workers may be.
FAMILY = """
import subprocess, sys
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
print(*[child.pid for child in children], flush=True)
children[0].wait()
"""
OWNER = f"""
import sys, time
from pathlib import Path
from models.processes import GuardedProcess
GuardedProcess([sys.executable, "-c", {FAMILY!r}], Path(sys.argv[1]))
print("started", flush=True)
time.sleep(600)
"""
GONE_WITHIN = 10


def family(log: Path) -> list[psutil.Process]:
    """The two grandchildren, once both have started."""
    while len(log.read_text().split()) < 2:
        os.sched_yield()
    return [psutil.Process(int(pid)) for pid in log.read_text().split()]


def test_end_kills_all_descendants(tmp_path: Path):
    with GuardedProcess([sys.executable, "-c", FAMILY], tmp_path / "log") as process:
        children = family(process.log)
    assert psutil.wait_procs(children, GONE_WITHIN)[1] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_descendant_survives_its_owners_death(tmp_path: Path, how: signal.Signals):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path / "log"], stdout=subprocess.PIPE)
    assert owner.stdout
    assert owner.stdout.readline() == b"started\n"
    children = family(tmp_path / "log")
    owner.send_signal(how)
    owner.wait()
    owner.stdout.close()
    assert psutil.wait_procs(children, GONE_WITHIN)[1] == []


def test_no_descendant_survives_the_death_of_the_guard(tmp_path: Path):
    """As when Ray ends a worker: it kills the worker's own children."""
    process = GuardedProcess([sys.executable, "-c", FAMILY], tmp_path / "log")
    children = family(process.log)
    os.kill(process.pid, signal.SIGKILL)
    assert psutil.wait_procs(children, GONE_WITHIN)[1] == []
    process.end()


def test_exit_code_and_log(tmp_path: Path):
    script = "import sys; print('last words'); sys.exit(7)"
    with GuardedProcess([sys.executable, "-c", script], tmp_path / "log") as process:
        assert process.wait() == 7
        assert process.log_tail() == "last words"


def test_death_by_signal_gives_an_exit_code(tmp_path: Path):
    script = "import os; os.kill(os.getpid(), 9)"
    with GuardedProcess([sys.executable, "-c", script], tmp_path / "log") as process:
        assert process.wait() == 128 + 9
