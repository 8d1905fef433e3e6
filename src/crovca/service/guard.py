"""What stands before every request: its number, its limits, who may come in, and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram

COOKIE = "crovca_token"
_CLIENTS = 10_000  # addresses whose rate is remembered
_OPEN = ("/healthz", "/readyz", "/static/", "/login")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes:
        token: what clients must show ("Authorization: Bearer ..."); None: nobody is asked.
        body_bytes: of a request.
        per_second: requests a second of one address, on average; 0: no limit.
        burst: requests at once.
    """

    token: str | None = None
    body_bytes: int = 32 << 20
    per_second: float = 100.0
    burst: int = 400

    def admits(self, shown: str) -> bool:
        """Whether this is the token, or none is asked for; in a time that tells nothing of it."""
        return self.token is None or hmac.compare_digest(shown.encode(), self.token.encode())


class Guard:
    """ASGI middleware: request ids, body and rate limits, bearer tokens, counters and a line of the log."""

    def __init__(self, app: App, limits: Limits, registry: CollectorRegistry) -> None:
        self._app, self._limits = app, limits
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> tokens left, since when
        self._requests = Counter("crovca_requests", "Requests", ["method", "status"], registry=registry)
        self._seconds = Histogram("crovca_request_seconds", "Seconds of a request", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request = time.perf_counter(), uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request"] = request
        status, begun = 500, False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), *_headers(request)]
            await send(message)

        try:
            refused = self._refusal(scope)
            if refused is not None and refused[0] == 401 and _is_page(scope):
                await _to_login(answer)
            elif refused is None:
                await self._app(scope, _bounded(receive, self._limits.body_bytes), answer)
            else:
                await _refuse(answer, *refused, request)
        except asyncio.CancelledError:  # the service stops, and its grace is over
            if not begun:
                await _refuse(answer, 503, "the service stopped before this was answered; ask again", request)
            raise
        finally:
            seconds = time.perf_counter() - started
            self._requests.labels(scope["method"], str(status)).inc()
            self._seconds.observe(seconds)
            log.info("%s %s %s %d %.1f ms", request, scope["method"], scope["path"], status, 1000 * seconds)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            return 400, "Content-Length is not a number"
        if length > self._limits.body_bytes:
            return 413, f"the body has {length:,} bytes, the limit is {self._limits.body_bytes:,}"
        if not self._within_rate((scope.get("client") or ("?", 0))[0]):
            return 429, f"more than {self._limits.per_second:g} requests a second; wait a little"
        if self._limits.token is not None and not scope["path"].startswith(_OPEN) and not self._known(headers):
            return 401, "a token is needed: 'Authorization: Bearer ...', or log in at /login"
        return None

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        shown = headers.get(b"authorization", b"").decode("latin-1")
        if shown.lower().startswith("bearer "):
            return self._limits.admits(shown[7:].strip())
        try:
            cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._limits.admits(cookie.value)

    def _within_rate(self, address: str) -> bool:
        """A bucket of ``burst`` that fills at ``per_second``, one for each address."""
        if not self._limits.per_second:
            return True
        now = time.monotonic()
        left, since = self._rates.pop(address, (float(self._limits.burst), now))
        left = min(float(self._limits.burst), left + (now - since) * self._limits.per_second)
        self._rates[address] = (max(left - 1, 0.0), now)
        if len(self._rates) > _CLIENTS:
            self._rates.popitem(last=False)
        return left >= 1


def _bounded(receive: Receive, most: int) -> Receive:
    """The body, as long as it is not larger than it may be."""
    seen = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, f"the body has more than {most:,} bytes")
        return message

    return bounded


async def _refuse(send: Send, status: int, message: str, request: str) -> None:
    body = json.dumps({"error": message, "request": request}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_page(scope: Scope) -> bool:
    """Whether a person looks at the answer."""
    accepted = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] == "GET" and b"text/html" in accepted and not scope["path"].startswith("/v1")


async def _to_login(send: Send) -> None:
    headers = [(b"location", b"/login"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _headers(request: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", request.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (
            b"content-security-policy",
            b"default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
        ),
    ]
