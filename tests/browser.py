"""A headless Chromium over its DevTools protocol: opens a page, runs expressions in it, records errors and requests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `errors`: what the console reported. `requests`: URLs that the page asked for."""

    def __init__(self, connection: Any):
        self._connection, self._last = connection, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def open(self, url: str, ready: str) -> None:
        """Goes to `url` and waits until the expression `ready` is true."""
        self._send("Page.navigate", url=url)
        self.wait(ready)

    def wait(self, condition: str) -> None:
        """Waits until `condition` is true, from frame to frame."""
        look = f"let is; try {{ is = {condition}; }} catch {{}} is ? done(true) : setTimeout(look, 5);"
        self.run(f"new Promise((done) => {{ const look = () => {{ {look} }}; look(); }})")

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        found = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self._send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def dark(self, is_dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[feature])

    def size(self, width: int, height: int) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self) -> str:
        """What is in sight, as PNG in base64."""
        return self._send("Page.captureScreenshot", format="png")["data"]

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._connection.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(SECONDS))
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A tab of a Chromium of its own."""
    program = chromium()
    assert program
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        command = [program, *options, "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert process.stderr
            listening = next(line for line in process.stderr if "DevTools listening on" in line).split()[-1]
            port = listening.split(":")[2].partition("/")[0]
            yield from _tab(port)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tab(port: str) -> Iterator[Page]:
    import httpx

    targets = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
    url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
    with connect(url, max_size=None, proxy=None) as connection:
        yield Page(connection)


def url_of(path: Path) -> str:
    return path.resolve().as_uri()
