"""A page in a real Chromium, controlled with the DevTools protocol."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")


@contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """Start a headless browser; yields the address of its DevTools server."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen(["chromium", *options, "about:blank"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "DevTools listening on ws://" in line)
        yield "http://" + line.rpartition("ws://")[2].partition("/")[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def run_in_page(browser: str, url: str, script: str) -> Any:
    """Open a page, run a script in it, the body of an async function, and return the function's result."""
    return asyncio.run(_run(browser, url, f"(async () => {{{script}}})()"))


async def _run(browser: str, url: str, expression: str) -> Any:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{browser}/json/list") as answer:
            page = next(target for target in await answer.json() if target["type"] == "page")
        async with http.ws_connect(page["webSocketDebuggerUrl"]) as socket:
            await _command(socket, "Page.enable", {})
            await _command(socket, "Page.navigate", {"url": url})
            await _until(socket, lambda message: message.get("method") == "Page.loadEventFired")
            given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
            result = await _command(socket, "Runtime.evaluate", given)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")


async def _command(socket: aiohttp.ClientWebSocketResponse, method: str, params: dict[str, Any]) -> Any:
    await socket.send_str(json.dumps({"id": 1, "method": method, "params": params}))
    return (await _until(socket, lambda message: message.get("id") == 1))["result"]


async def _until(socket: aiohttp.ClientWebSocketResponse, wanted: Any) -> Any:
    async with asyncio.timeout(30):
        while not wanted(message := json.loads((await socket.receive()).data)):
            pass
    return message
