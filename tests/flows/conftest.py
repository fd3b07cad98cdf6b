from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.flows.real_runs import Shapes, folder


@pytest.fixture(scope="session")
def shape_models() -> Callable[[Path], Shapes] | None:
    """Makes `Shapes` that work in a folder; None where the tokenizers or the problems are absent."""
    tokenizers, data = folder("BREVITY_TEST_TOKENIZERS"), folder("BREVITY_TEST_DATA")
    return partial(Shapes, tokenizers=tokenizers, data=data) if tokenizers and data else None
