from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.flows.real_runs import Shapes
from tests.folders import folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root of a module's runs."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def shape_models() -> Callable[[Path], Shapes] | None:
    """Makes `Shapes` that work in a folder; None where the tokenizers or the problems are absent."""
    tokenizers, data = folder("BREVITY_TEST_TOKENIZERS"), folder("BREVITY_TEST_DATA")
    return partial(Shapes, tokenizers=tokenizers, data=data) if tokenizers and data else None
