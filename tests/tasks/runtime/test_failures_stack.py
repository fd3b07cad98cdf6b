"""Which failures are retried."""

import errno
import shutil
import sqlite3
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from conf.load import SettingsError
from models.inference.remote_servers import WrongEndpoint
from models.inference.rollout_executor import TooManyFailed
from models.inference.vllm_server import ServerCannotStart, ServerFailed
from models.llm.client import LlmUnanswered, TooManyInvalidReplies
from models.training.launcher import TrainerCrashed, TrainingFailed
from tasks.runtime.failures import DiskFull, is_disk_full, is_transient
from tasks.runtime.leases import LeaseLost


def answered(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))


def from_database(text: str) -> OperationalError:
    return OperationalError("SELECT 1", {}, sqlite3.OperationalError(text))


def from_package(*names: str) -> Exception:
    """An error of a package that is not installed here; `names`: its class, and those it is derived from."""
    kind: Any = Exception
    for name in reversed(names):
        module, _, own = name.rpartition(".")
        kind = type(own, (kind,), {"__module__": module})
    return kind("away")


PASSES = [
    ServerFailed("gone"),
    TrainerCrashed("ended with code 137"),
    LeaseLost("frozen"),
    LlmUnanswered("12 replies are missing"),
    httpx.ConnectError("refused"),
    answered(503),
    TimeoutError(),
    ConnectionResetError(),
    from_database("database is locked"),
    OSError(errno.EIO, "input/output error"),
    OSError(errno.ESTALE, "stale file handle"),
    from_package("botocore.exceptions.EndpointConnectionError", "botocore.exceptions.ConnectionError"),
    from_package("azure.core.exceptions.ServiceRequestError", "azure.core.exceptions.AzureError"),
]
STAYS = [
    WrongEndpoint("a page"),
    ServerCannotStart("no memory"),
    TooManyFailed("3 of 4"),
    TooManyInvalidReplies("12 replies are no JSON"),
    TrainingFailed("one row does not fit"),
    SettingsError("unknown setting"),
    DiskFull("no space left"),
    answered(404),
    from_package("botocore.exceptions.NoCredentialsError", "botocore.exceptions.BotoCoreError"),
    ProgrammingError("SELECT 1", {}, sqlite3.ProgrammingError("no such column")),
    from_database("database or disk is full"),
    FileNotFoundError(errno.ENOENT, "no such file"),
    OSError(errno.ENOSPC, "no space left"),
    ValueError("wrong"),
]


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_what_may_pass_is_retried(error: Exception):
    assert is_transient(error)


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_what_stays_is_not(error: Exception):
    assert not is_transient(error)


def test_a_full_disk_is_known_by_all_its_names():
    full = [error for error in PASSES + STAYS if is_disk_full(error)]
    assert full == [STAYS[10], STAYS[12]]
    for error in (TrainerCrashed, ServerFailed, shutil.Error):
        assert is_disk_full(error("the log ends with: OSError: [Errno 28] No space left on device"))
