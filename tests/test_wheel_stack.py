"""The wheel holds what an installed `brevity` needs: every module, the presets, the pinned lists, the bundled model."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.test_house import ROOT

PACKAGES = ("flows", "tasks", "models", "reasoning", "conf")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built from a copy: setuptools writes into the folder that it builds."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(target),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    return ZipFile(next(target.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_packages(wheel: ZipFile):
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    files = {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}
    assert files - set(wheel.namelist()) == set()


def test_the_wheel_brings_the_command(wheel: ZipFile):
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "brevity = flows.cli:main" in wheel.read(name).decode()


def test_a_preset_is_found_beside_an_installed_package(wheel: ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path)
    probe = "import conf.load; print(conf.load.__file__); import flows.cli; flows.cli.main(['presets'])"
    run = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert run.stdout.startswith(str(tmp_path))
    assert "paper-r1-1.5b" in run.stdout
