"""The private Prefect server of a run."""

from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from flows.prefect_server import prefect_server


def test_it_listens_on_loopback_alone_and_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for name in ("PREFECT_HOME", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # set by the server, for this process; given back after the test
    before = set(psutil.Process().children(recursive=True))
    with prefect_server(tmp_path) as url:
        family = set(psutil.Process().children(recursive=True)) - before
        connections = [one for process in family for one in process.net_connections("inet")]
        listening = {(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", urlsplit(url).port)}
    assert psutil.wait_procs(list(family), 60)[1] == []
