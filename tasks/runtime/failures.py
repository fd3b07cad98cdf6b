"""Which failures of a step may pass, so that it is tried again, and which never do.

It knows the errors of servers, trainers, storage and databases. It must not know Prefect's retries.
"""

from __future__ import annotations

import errno
import shutil

import aiohttp
import httpx
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from conf.errors import ReadableError
from models.inference.remote_servers import WrongEndpoint
from models.inference.vllm_server import ServerCannotStart, ServerFailed
from models.llm.client import LlmUnanswered
from models.training.launcher import TrainerCrashed
from tasks.runtime.leases import LeaseLost


class WorkerLost(ReadableError):
    """The process or the node of a worker has gone."""


LOST = (
    ServerFailed,
    WorkerLost,
    TrainerCrashed,
    LeaseLost,
    LlmUnanswered,
    httpx.HTTPError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    InterfaceError,
    ConnectionError,
    TimeoutError,
)
"""A server, a trainer, a connection or the lease was lost."""
LOST_BY_NAME = {
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
}
"""The same for S3 and Azure, whose packages are installed by those who use them. Google's raises aiohttp's errors."""
AWAY = {
    errno.EIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Errors of a storage that is away or busy."""
FULL = ("No space left", "disk is full", "Disk quota exceeded")
"""What logs and databases say of a full disk."""


class DiskFull(ReadableError):
    """No space is left where a step writes."""


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed later without a change by a person.

    Mistakes of the user, unsuitable models and full disks never do.
    """
    if isinstance(error, WrongEndpoint | ServerCannotStart) or is_disk_full(error):
        return False
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    if isinstance(error, OperationalError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    is_away = isinstance(error, OSError) and error.errno in AWAY
    return isinstance(error, LOST) or is_away or bool(names & LOST_BY_NAME)


def is_disk_full(error: BaseException) -> bool:
    """Also as databases, trainers, servers and `shutil` say it."""
    is_told = isinstance(error, OperationalError | TrainerCrashed | ServerFailed | shutil.Error)
    if is_told and any(words in str(error) for words in FULL):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
