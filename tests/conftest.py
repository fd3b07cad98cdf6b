"""Shared fixtures. Files named `*_stack.py` import Prefect, torch, vLLM or math-verify and take longer;
`-m "not stack"` skips them without importing them."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.folders import folder
from tests.models.chat import Chat, Script
from tests.services import Postgres, S3Server
from tests.shapes import make_shapes

# Steps outside a flow start a server of Prefect's own, which takes longer than its 20 seconds on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Test processes side by side share the cores: with more threads than cores, all wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name.endswith("_stack.py") and config.option.markexpr == "not stack" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.endswith("_stack.py"):
            item.add_marker("stack")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public problems, traces and answer-check cases (see the README). Tests skip without it."""
    return _folder("BREVITY_TEST_DATA", "real data")


@pytest.fixture(scope="session")
def real_tokenizers() -> Path:
    """Folder of real tokenizers: `NAME/tokenizer.json.gz`, `NAME/tokenizer_config.json`. Tests skip without it."""
    return _folder("BREVITY_TEST_TOKENIZERS", "real tokenizers")


@pytest.fixture(scope="session")
def shapes(real_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random checkpoints of real architectures, by the names of `tests.shapes.SHAPES`."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), real_tokenizers)


@pytest.fixture(scope="session")
def cases() -> Callable[[str], list[dict[str, Any]]]:
    """Reads a file of test cases (inputs with expected results) by its name. Tests skip without the folder."""
    files = _folder("BREVITY_TEST_CASES", "cases")
    return lambda name: [json.loads(line) for line in (files / name).read_text().splitlines()]


def _folder(variable: str, what: str) -> Path:
    found = folder(variable)
    if found is None:
        pytest.skip(f"{variable} names no folder with {what}")
    return found


@pytest.fixture
def chat() -> Iterator[Callable[..., Chat]]:
    """Starts scripted chat endpoints, and closes them after the test."""
    started: list[Chat] = []

    def start(script: Script, **settings: Any) -> Chat:
        started.append(Chat(script, **settings))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


@pytest.fixture(scope="module")
def plain_steps() -> Iterator[None]:
    """Runs all pipelines of a module without Prefect, whose server takes most of a scripted run's time. The cache keys
    are the same; flows/test_prefect_stack.py shows that Prefect uses them."""
    from tests.flows.world import without_prefect

    with without_prefect():
        yield


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A private Prefect server with its own database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Each call returns the URL of a new bucket."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.bucket


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder))
        yield server
        server.close()


@pytest.fixture(scope="session")
def postgres(postgres_server: Postgres) -> Callable[[], str]:
    """Each call returns the URL of a new database."""
    return postgres_server.database
