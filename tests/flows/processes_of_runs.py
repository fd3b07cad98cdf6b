"""Runs in processes of their own: the figures that they print, and what they have put into a store."""

import json
import subprocess
from typing import Any

from sqlalchemy import create_engine, func, select

from models.inference.rollout_store import COMPLETIONS


def figures(run: subprocess.Popen[str], answer: str | None = None) -> dict[str, Any]:
    """The figures of a run that ends well. `answer`: what it waits for."""
    output, _ = run.communicate(answer)
    assert run.returncode == 0
    return json.loads(output.splitlines()[-1])


def stored(url: str) -> int:
    """Completions in a store."""
    with create_engine(url).connect() as connection:
        return connection.execute(select(func.count()).select_from(COMPLETIONS)).scalar_one()
