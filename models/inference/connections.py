"""HTTP clients for servers at a URL, or behind a Unix socket (`unix:PATH`). It must not know what is asked of them."""

from __future__ import annotations

import socket
import ssl
from functools import cache
from typing import Any

import aiohttp
import httpx

UNIX = "unix:"
IDLE_CONNECTION = 2.0
"""Seconds that an idle connection is kept: less than any server does, so that a server does not close it under a
request."""
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Detects a vanished machine within two minutes, long before the request times out."""


def origin(url: str) -> str:
    """What a server's paths are appended to."""
    return "http://localhost" if _socket_path(url) else url


def _socket_path(url: str) -> str:
    """Empty for a URL."""
    return url.removeprefix(UNIX) if url.startswith(UNIX) else ""


@cache
def _certificates() -> ssl.SSLContext:
    """Loaded once: httpx would read them again for each client, which takes longer than most requests."""
    return httpx.create_ssl_context()


def client(url: str, **options: Any) -> httpx.Client:
    """A client whose paths are relative to the server. `options`: of httpx."""
    path = _socket_path(url)
    transport = httpx.HTTPTransport(uds=path, verify=_certificates()) if path else None
    return httpx.Client(base_url=origin(url), transport=transport, verify=_certificates(), **options)


def async_client(url: str, limits: httpx.Limits, **options: Any) -> httpx.AsyncClient:
    """The same, for asyncio."""
    path = _socket_path(url)
    # For a URL httpx makes the transport, which goes through the proxy that the environment names.
    transport = httpx.AsyncHTTPTransport(uds=path, limits=limits, verify=_certificates()) if path else None
    return httpx.AsyncClient(
        base_url=origin(url), transport=transport, limits=limits, verify=_certificates(), **options
    )


def many_requests(url: str, limit: int) -> aiohttp.ClientSession:
    """A client for hundreds of requests at once. httpx scans all its connections on each, which would take most of the
    time. Paths are appended to `origin(url)`."""
    options: Any = {"limit": limit, "keepalive_timeout": IDLE_CONNECTION}
    if path := _socket_path(url):
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, **options))
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_watched_socket, **options))


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket with TCP keepalive."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS lacks some
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
