from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def plain_steps() -> Iterator[None]:
    """Runs all pipelines of a module without Prefect, whose server takes most of a scripted run's time. The cache keys
    are the same; test_prefect_stack.py shows that Prefect uses them."""
    from tests.flows.world import without_prefect

    with without_prefect():
        yield
