from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.flows.real_runs import Shapes, folder


@pytest.fixture(scope="module")
def plain_steps() -> Iterator[None]:
    """Runs all pipelines of a module without Prefect, whose server takes most of a scripted run's time. The cache keys
    are the same; test_prefect_stack.py shows that Prefect uses them."""
    from tests.flows.world import without_prefect

    with without_prefect():
        yield


@pytest.fixture(scope="session")
def shape_models() -> Callable[[Path], Shapes] | None:
    """Makes `Shapes` that work in a folder; None where the tokenizers or the problems are absent."""
    tokenizers, data = folder("BREVITY_TEST_TOKENIZERS"), folder("BREVITY_TEST_DATA")
    return partial(Shapes, tokenizers=tokenizers, data=data) if tokenizers and data else None
