"""How a request comes in and its answer goes out, in place of Quart's own way.

Quart reads the body in one task and handles the request in another, and sends in a third, so that an
application may stream. Nothing is streamed here: the body is read first, all of it, and the answer is
sent in one piece. That spares three tasks a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Response
from quart.asgi import ASGIHTTPConnection
from quart.utils import encode_headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from service.answers import Answer, problem_answer
from service.observation import CURRENT, Exchange

MOST_BODY_BYTES: Final = 64 * 1024

BODY_SECONDS: Final = 10.0
"""A client that sends its body more slowly is answered 408."""

LINGER_SECONDS: Final = 1.0
"""How long a client may go on sending a body that was refused already, and still read the answer."""


class Direct(Protocol):
    """Answers a path by itself. What it raises becomes a problem."""

    async def __call__(
        self, method: str, headers: Mapping[bytes, bytes], exchange: Exchange
    ) -> Answer: ...


class Connection(ASGIHTTPConnection):
    """One request, from its headers to the last byte of its answer."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        exchange = CURRENT.get()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                exchange.body = await _read(receive)
        except TimeoutError:
            exchange.body = RequestTimeout()
        except RequestEntityTooLarge as error:
            exchange.body = error
        except ConnectionError:  # the client left: there is nobody to answer
            return
        path = self.scope["path"]
        direct = cast(Application, self.app).direct.get(path)
        if direct is None:
            await self._answer_by_quart(exchange, send)
        else:
            exchange.route = path
            await _send_answer(await self._answer_by(direct, exchange), send)
        if isinstance(exchange.body, HTTPException):
            await _linger(receive)

    async def _answer_by(self, direct: Direct, exchange: Exchange) -> Answer:
        headers = {name.lower(): value for name, value in reversed(list(self.scope["headers"]))}
        try:
            return await direct(self.scope["method"], headers, exchange)
        except Exception as error:  # noqa: BLE001 - every error is answered
            return problem_answer(error, exchange.request_id, reading=False)

    async def _answer_by_quart(self, exchange: Exchange, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        response = cast(Response, await self.app.handle_request(request))
        if request.url_rule is not None:
            exchange.route = request.url_rule.rule
        body = await response.get_data(as_text=False)
        await _send(response.status_code, encode_headers(response.headers), body, send)


class Application(Quart):
    """Quart, with some paths that are answered directly."""

    asgi_http_class = Connection

    def __init__(self, name: str, direct: Mapping[str, Direct]) -> None:
        super().__init__(name, static_folder=None)
        self.url_map.merge_slashes = False  # a path is what it is: no redirects
        self.direct = direct


async def _read(receive: ASGIReceiveCallable) -> bytes:
    """The whole body. Raises RequestEntityTooLarge, ConnectionError."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError
        body += message["body"]
        if len(body) > MOST_BODY_BYTES:
            raise RequestEntityTooLarge
        if not message["more_body"]:
            return body


async def _send_answer(answer: Answer, send: ASGISendCallable) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", b"%d" % len(answer.body)),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers),
    ]
    await _send(answer.status, headers, answer.body, send)


async def _send(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, send: ASGISendCallable
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _linger(receive: ASGIReceiveCallable) -> None:
    """Take what still comes: Hypercorn waits for ever to hand over what nobody takes."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive())["type"] == "http.request":
                pass
    except TimeoutError:
        pass
