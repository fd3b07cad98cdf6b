"""Serves the page of a run on loopback: one file, to any path, to nobody else."""

from __future__ import annotations

import os
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conf.errors import ReadableError
from tasks.runtime.run_directory import PAGE_FILE

HOSTS = ("127.0.0.1", "localhost")


class NoPageError(ReadableError):
    """A folder without a page, or a port that cannot be used."""


class _PageHandler(BaseHTTPRequestHandler):
    page: Path

    def do_GET(self) -> None:
        # A name of somebody else's that leads here is no visitor of ours (DNS rebinding).
        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            self.send_error(403)
            return
        with self.page.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            shutil.copyfileobj(file, self.wfile)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the terminal shows the address."""


def serve_page(run: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page in the folder `run`; port 0 takes a free one. Raises NoPageError."""
    page = run / PAGE_FILE
    if not page.is_file():
        raise NoPageError(f"{run}: no {PAGE_FILE}; name the folder of a finished run, such as runs/latest")
    handler = type("Handler", (_PageHandler,), {"page": page})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise NoPageError(f"port {port}: {error}; choose another with --port, or none") from None
