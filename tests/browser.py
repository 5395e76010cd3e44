"""Drive a headless Chromium over its debugging pipe; nothing but the browser is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """The program of a Chromium on this machine, None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A page that is open in a browser."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.count, self.rest, self.session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events in between are left out."""
        self.count += 1
        said: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            said["sessionId"] = self.session
        os.write(self.writing, json.dumps(said).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                more = os.read(self.reading, 1 << 16)
                assert more, "the browser has ended"
                self.rest += more
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """Wait for a value that is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is {found!r}"
            time.sleep(0.1)
        return found

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def open_tab(program: str, profile: Path, *more: str) -> Iterator[Tab]:
    """Start a browser with an empty page, and with more flags; it is ended with the context."""
    there, writing = os.pipe()
    reading, here = os.pipe()
    flags = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--window-size=1200,1000",
             "--disable-dev-shm-usage", f"--user-data-dir={profile}", *(["--no-sandbox"] if os.getuid() == 0 else []), *more]  # fmt: skip

    def pipes() -> None:  # the browser reads from 3 and writes to 4
        first, second = os.dup(there), os.dup(here)
        os.dup2(first, 3)
        os.dup2(second, 4)

    running = subprocess.Popen([program, *flags], preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(there)
    os.close(here)
    try:
        yield Tab(reading, writing)
    finally:
        running.terminate()
        running.wait(20)
        os.close(reading)
        os.close(writing)
