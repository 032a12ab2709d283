"""What is seen of each request: its id, one access line, and its time.

An ASGI layer around the whole application, so that a request whose client went away, or that broke the
application, is seen as well.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope
from quart import Quart
from structlog.contextvars import bind_contextvars, clear_contextvars
from werkzeug.exceptions import HTTPException

from mailjob import meters

METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST"})
"""Named in metrics; a client may invent as many others as it likes."""

UNMATCHED: Final = "unmatched"
CLIENT_GONE: Final = 499
"""The status logged where the client left before it was answered (nginx's convention)."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger()


class Exchange:
    """One request and its answer, as far as they have come."""

    __slots__ = ("body", "job_id", "request_id", "route", "status")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.route = UNMATCHED
        self.status = CLIENT_GONE
        self.job_id: str | None = None
        self.body: bytes | HTTPException = b""
        """All of it, or why it was not taken."""

    def whole_body(self) -> bytes:
        """Raises RequestEntityTooLarge, RequestTimeout."""
        if isinstance(self.body, HTTPException):
            raise self.body
        return self.body


CURRENT: ContextVar[Exchange] = ContextVar("exchange")


class Observation:
    """Wraps Quart's ASGI application."""

    def __init__(self, app: Quart, leaving: Callable[[], bool]) -> None:
        self._app = app.asgi_app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":  # there are none here
            await send({"type": "websocket.close", "code": 1000, "reason": None})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_request_id(scope))
        CURRENT.set(exchange)
        clear_contextvars()
        bind_contextvars(request_id=exchange.request_id)

        async def send_seen(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                exchange.status = event["status"]
                event["headers"] = [
                    *event["headers"],
                    (b"x-request-id", exchange.request_id.encode()),
                    *([(b"connection", b"close")] if self._leaving() else []),
                ]
            await send(event)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_seen)
        finally:
            self._note(scope, exchange, time.perf_counter() - started)

    @staticmethod
    def _note(scope: HTTPScope, exchange: Exchange, seconds: float) -> None:
        known = exchange.route != UNMATCHED and scope["method"] in METHODS
        method = scope["method"] if known else "other"
        meters.http_seconds(method, exchange.route).observe(seconds)
        meters.http_requests(method, exchange.route, exchange.status).inc()
        fields = {"job_id": exchange.job_id} if exchange.job_id else {}
        log.info(
            "request",
            method=scope["method"],
            route=exchange.route,
            status=exchange.status,
            duration_ms=round(seconds * 1000, 2),
            **fields,
        )


def _request_id(scope: HTTPScope) -> str:
    """The client's ``X-Request-ID`` where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name.lower() == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex
