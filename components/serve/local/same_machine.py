"""Protection of a model on this machine from web pages, which a browser lets send requests to it."""

from collections.abc import Collection
from ipaddress import ip_address
from socket import gethostname
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameMachine:
    """ASGI middleware that refuses requests which a web page of another site could have caused.

    Such a page can send a POST without being asked (a "simple request"), and can read answers if its own host name
    resolves to this machine ("DNS rebinding"). Ollama has the same two checks.

    Args:
        app: The application to protect.
        host: Address that the server listens on. Any Host header is accepted if it is not a loopback address, because
            then other machines use the server by names that are not known here.
        origins: Origins of pages that may send requests.
    """

    def __init__(self, app: ASGIApp, host: str, origins: Collection[str]) -> None:
        self._app, self._any_host, self._origins = app, not _is_loopback(host), origins
        self._hosts = {"localhost", gethostname().lower(), host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with status 403."""
        reason = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else ""
        await (JSONResponse({"error": reason}, 403) if reason else self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and not self._is_own(host):
            return "the Host header is not a name of this machine: use 127.0.0.1 or localhost"
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != host:
            return f"web pages of {origin} may not send requests: permit it with serve.origins"
        return ""

    def _is_own(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return name in self._hosts or name.endswith(".localhost") or _is_address(name)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
