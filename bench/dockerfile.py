"""Runs the steps of the Dockerfile in an empty root file system, where there is no container engine. As root:

    debootstrap --variant=minbase --include=python3.11-venv,python3.11-dev,ca-certificates bookworm FOLDER
    python -m bench.dockerfile FOLDER cpu                   # every step of the target, then `brevity doctor`
    python -m bench.dockerfile FOLDER cpu brevity run dto   # another command at the end

Debian's Python stands in for the base image's. FOLDER needs /proc, /sys, /dev, a /dev/shm that
everybody may write to, and what pip is configured to read.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
LAST = ("brevity", "doctor", "dto")


def steps(text: str, target: str) -> list[tuple[str, str]]:
    """Instructions of a target and of the stages that it is made from, in order: name and the rest of the line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: dict[str, list[tuple[str, str]]] = {}
    found: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            source, _, stage = rest.partition(" AS ")
            found = stages[stage] = list(stages.get(source, []))
        else:
            found.append((name, rest))
    return stages[target]


class Image:
    """What the instructions have set so far."""

    def __init__(self, root: Path):
        self.root, self.user, self.folder = root, "0", "/"
        self.environment = {"PATH": PATH, "HOME": "/root"}

    def do(self, name: str, rest: str) -> None:
        """Carries out one instruction. Those for the start of a container are not carried out."""
        if name == "RUN":
            self.run("/bin/bash", "-o", "pipefail", "-c", rest)
        elif name == "COPY":
            self._copy(*(part for part in shlex.split(rest) if not part.startswith("--")))
        elif name == "USER":
            self.user = rest
            self.environment["HOME"] = "/home/brevity"
        elif name == "WORKDIR":
            self.folder = rest
        elif name == "ENV":
            for part in shlex.split(rest):
                variable, _, value = part.partition("=")
                self.environment[variable] = value.replace("$PATH", self.environment["PATH"])

    def run(self, *command: str) -> None:
        started, pip = time.monotonic(), {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        enter = [
            "chroot",
            f"--userspec={self.user}:{self.user}",
            str(self.root),
            "/usr/bin/env",
            f"--chdir={self.folder}",
        ]
        subprocess.run([*enter, *command], env=pip | self.environment, check=True)
        print(f"{time.monotonic() - started:6.0f} s  {' '.join(command)[:100]}", flush=True)

    def _copy(self, source: str, target: str) -> None:
        """Copies what git knows and .dockerignore does not name."""
        left_out = (ROOT / ".dockerignore").read_text().split()
        names = subprocess.check_output(["git", "ls-files", source], cwd=ROOT, text=True).splitlines()
        for name in names:
            if name.split("/")[0] in left_out:
                continue
            inner = name if source == "." else str(Path(name).relative_to(source)) if (ROOT / source).is_dir() else ""
            place = self.root / self.folder.strip("/") / target / (inner or Path(name).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place)
        subprocess.run(["chown", "--recursive", self.user, self.root / self.folder.strip("/")], check=True)


def main(root: str, target: str, *command: str) -> None:
    image = Image(Path(root))
    for name, rest in steps((ROOT / "Dockerfile").read_text(), target):
        image.do(name, rest)
    image.run(*(command or LAST))


if __name__ == "__main__":
    main(*sys.argv[1:])
