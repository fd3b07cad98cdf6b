"""Child processes that never outlive this process: a guard process ends them when this process ends in any way.

`python -m models.processes COMMAND …` is the guard. It leads a process group, starts COMMAND in it, and reads its own
standard input, which only its owner keeps open. When the owner dies, even by SIGKILL, the pipe closes and the guard
kills all descendants, then its group. If the guard is killed itself, another process ends what is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

MARK = "BREVITY_GUARD"
"""Environment variable of all descendants of a guard; another value for each guard."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def threads() -> int:
    """Threads for a child process: OMP_NUM_THREADS (its outermost level), else the cores that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or len(os.sched_getaffinity(0)))


def free_port() -> int:
    """A port of the loopback interface that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def owner_name() -> str:
    """A name of this process for what it holds in a shared database; no two calls give the same."""
    return f"{process_name()}/{uuid.uuid4().hex}"


def process_name() -> str:
    """How all `owner_name`s of this process begin."""
    return f"{_machine()}/{os.getpid()}"


def is_dead(owner: str) -> bool:
    """Whether `owner` was a process of this machine that has ended."""
    machine, process, _ = owner.split("/")
    return machine == _machine() and not psutil.pid_exists(int(process))


def _machine() -> str:
    """The host by its name, its boot and its process ids: containers on one host may share its name, but no process
    ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return f"{socket.gethostname()}:{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


class GuardedProcess:
    """COMMAND running under a guard, with its output in a log file. Use as a context manager, or call `end`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "models.processes", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {}), MARK: uuid.uuid4().hex},
            )

    @property
    def pid(self) -> int:
        """Process id of the guard, which leads the process group."""
        return self._guard.pid

    def poll(self) -> int | None:
        """Exit code, or None while running."""
        return self._guard.poll()

    def wait(self) -> int:
        """Waits for the command to end; returns its exit code."""
        return self._guard.wait()

    def end(self) -> None:
        """Kills the command and all its descendants, and waits until they are gone."""
        assert self._guard.stdin
        self._guard.stdin.close()
        self._guard.wait()

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _kill_group() -> None:
    """Kills all descendants, also those in other groups, until none is left; then this group."""
    _kill_descendants()
    os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    """Kills the command if the guard itself is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _kill_descendants() -> None:
    me = psutil.Process()
    while children := me.children(recursive=True):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=1)


def _watch_guard() -> None:
    """Forks a process that ends all of this guard's session when the guard itself is killed, as Ray does with the
    children of a worker that ends. The command dies with the guard, but what it has started would not."""
    session, (reads, writes) = os.getsid(0), os.pipe()
    if os.fork():
        os.close(reads)
        return
    os.setsid()
    os.close(0)
    os.close(writes)
    while os.read(reads, 1):  # nobody writes: it closes with the guard
        pass
    while members := [one for one in psutil.process_iter() if one.pid != os.getpid() and _is_of(one, session)]:
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=1)
    os._exit(0)


def _is_of(process: psutil.Process, session: int) -> bool:
    """Whether the process is of the guard's session, or has its mark: a server's workers may have sessions of their
    own, and those that change their title may have lost the mark."""
    with suppress(psutil.Error, OSError):
        return os.getsid(process.pid) == session or process.environ().get(MARK) == os.environ[MARK]
    return False


def _guard(command: Sequence[str]) -> int:
    # Orphaned descendants are reparented to the guard instead of init, so that none escapes when its parent dies.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _watch_guard()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)

    def watch_owner() -> None:
        while os.read(0, 1):
            pass
        _kill_group()

    threading.Thread(target=watch_owner, daemon=True).start()
    code = child.wait()
    _kill_descendants()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
