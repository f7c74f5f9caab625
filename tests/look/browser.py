"""A headless Chromium over its own debugging protocol: no driver package to install."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

#: The browser, or None where there is none.
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep the requests and the errors of the page."""
        kind, details = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(details["exceptionDetails"]))
        elif kind == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.problems.append(details["entry"]["text"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """The current value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """Wait until an expression is true; while the page is missing it is false."""
        patient = f"(() => {{ try {{ return {expression}; }} catch (_) {{ return false; }} }})()"
        return wait_for(lambda: self.value(patient), expression, seconds)

    def key(self, key: str, kind: str) -> None:
        """``kind`` is keyDown or keyUp."""
        self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Repeat a question until the answer is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.02)
    raise AssertionError(f"still false: {what}")


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A new browser with one tab; ``profile`` is its own directory."""
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1100,820"),
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    log = profile / "log"
    profile.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as browser:
        try:
            pattern = r"DevTools listening on (ws://\S+)"
            found = wait_for(lambda: re.search(pattern, log.read_text()), "the browser starts", 60)
            with connect(found[1], max_size=2**26, compression=None) as socket:
                yield Page(socket)
        finally:
            browser.terminate()
