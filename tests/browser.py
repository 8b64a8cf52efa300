"""Headless Chromium, driven through its DevTools protocol, and a server for it to visit."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 180.0


class Browser:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.numbers = socket, itertools.count()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol. Raises RuntimeError where it is refused."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self.socket.receive_json()
                if answer.get("id") == number:
                    break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Return once an expression is true. Raises TimeoutError where it does not become so."""
        async with asyncio.timeout(PATIENCE):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url=address)
        await self.until(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    async def _middle(self, selector: str) -> dict[str, float]:
        found: dict[str, float] = await self.value(
            f"(() => {{const each = document.querySelector({selector!r}); each.scrollIntoView({{block: 'center'}});"
            "const box = each.getBoundingClientRect(); return {x: box.x + box.width / 2, y: box.y + box.height / 2}})()"
        )
        return found

    async def drop(self, path: Path, selector: str) -> None:
        """Drag a file from the desktop onto an element, and let go."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        place = await self._middle(selector)
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, data=data, **place)

    async def click(self, selector: str) -> None:
        place = await self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    async def picture(self, path: Path) -> None:
        """Keep a PNG of what is to be seen."""
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address at which an application is served, on loopback, until the block is left."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(120)


@asynccontextmanager
async def browser(width: int = 1000, height: int = 900) -> AsyncIterator[Browser]:
    """A browser with an empty page, ended when the block is left."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="crh-chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--remote-debugging-port=0", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession() as session:
                address = await _page_of(session, Path(profile) / "DevToolsActivePort", process)
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Browser(socket)
        finally:
            process.terminate()
            process.wait(120)


async def _page_of(session: aiohttp.ClientSession, said: Path, process: subprocess.Popen[bytes]) -> str:
    """The address at which the browser's page takes commands, once it has started."""
    async with asyncio.timeout(PATIENCE):
        while not said.exists() or len(said.read_text().split()) < 2:
            assert process.poll() is None, "the browser ended"
            await asyncio.sleep(0.05)
        while True:
            async with session.get(f"http://127.0.0.1:{said.read_text().split()[0]}/json/list") as answer:
                pages = [each for each in await answer.json(content_type=None) if each["type"] == "page"]
            if pages:
                address: str = pages[0]["webSocketDebuggerUrl"]
                return address
            await asyncio.sleep(0.05)
