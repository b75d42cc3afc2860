"""A real headless Chromium, driven over the DevTools protocol: pages are opened, typed into and asked."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S = 30.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser(executable: str, folder: Path) -> Iterator[str]:
    """Address of the DevTools of a browser that runs for the length of the block; its profile is kept in `folder`."""
    command = [
        executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
        "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{_port(folder / 'DevToolsActivePort')}"
        finally:
            process.terminate()
            process.wait(20)


def _port(file: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().split()[0])
        time.sleep(0.05)
    raise TimeoutError(f"Chromium has not started within {START_S:g} s")


class Tab:
    """One page. `complaints`: what its console and its security policy said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._sent = socket, 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    @classmethod
    @contextlib.contextmanager
    def of(cls, devtools: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Tab]:
        """A fresh tab with storage of its own."""
        request = urllib.request.Request(f"{devtools}/json/new?about:blank", method="PUT")
        with DIRECT.open(request, timeout=START_S) as response:
            target = json.load(response)
        with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            tab = cls(socket)
            tab.resize(width)
            tab.send("Emulation.setEmulatedMedia", features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ])
            yield tab
            tab.send("Page.close")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=START_S))
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.complaints.append(json.dumps(message["params"]))

    def resize(self, width: int, height: int = 900) -> None:
        """The size of what is seen, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)

    def open(self, url: str) -> None:
        """Go somewhere and wait until it is there."""
        self.send("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
                           userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str, timeout_s: float = 15.0) -> None:
        """Wait for a JavaScript expression to be true."""
        deadline = time.monotonic() + timeout_s
        while not self.ask(f"!!({condition})"):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.03)

    def focus(self, selector: str) -> None:
        """Put the keyboard on an element."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")

    def type(self, text: str) -> None:
        """Text from the keyboard."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, code: int = 0, text: str = "", shift: bool = False) -> None:
        """One key, such as Tab (code 9), Enter (13), Escape (27) or ArrowRight (39)."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element."""
        box = self.ask(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView({{block: "
            "'center'}); const box = node.getBoundingClientRect(); return [box.x + box.width / 2, "
            "box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that the accessibility tree shows."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        ]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG file."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
