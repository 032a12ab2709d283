"""The service's connections: whole answers, timers, and the end of serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, request

from mailjob.settings import Bind
from service import server
from service.listener import Listener

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

REQUEST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
BODY = b"words"


class Served:
    """An application that echoes bodies, served on a unix socket; ``/half`` breaks behind its head."""

    def __init__(self, folder: Path) -> None:
        self.stopping = asyncio.Event()
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._path = folder / "api.sock"
        self._listener = Listener(Bind(path=str(self._path)))
        app = Quart("echo", static_folder=None)

        @app.post("/echo")
        async def echo() -> bytes | str:
            self.asked.set()
            await self.may_answer.wait()
            return await request.get_data()

        async def breaking(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            if scope["type"] == "http" and scope["path"] == "/half":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise RuntimeError("half an answer")
            await app(scope, receive, send)

        self.task = asyncio.create_task(server.serve(breaking, self._listener, self._stopped))
        self.listening = asyncio.Event()

    async def _stopped(self) -> None:
        self.listening.set()
        await self.stopping.wait()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await self.listening.wait()
        return await asyncio.open_unix_connection(self._path)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Served]:
    system = Served(folder)
    async with asyncio.timeout(15):
        yield system
        system.stopping.set()
        await system.task


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readexactly(len(BODY))


async def test_an_answer_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = asyncio.StreamWriter.write

    def count(writer: asyncio.StreamWriter, data: Any) -> None:
        if data.startswith(b"HTTP/") or data == BODY:
            writes.append(data)
        write(writer, data)

    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        monkeypatch.setattr(asyncio.StreamWriter, "write", count)
        for _ in range(2):
            writer.write(REQUEST + b"\r\n" + BODY)
            assert (await answer(reader))[1] == BODY
        writer.close()
    assert len(writes) == 2
    assert all(data.endswith(BODY) for data in writes)


async def test_an_answer_without_a_body_leaves_as_well(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"HEAD /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(REQUEST + b"\r\n" + BODY)
        assert (await answer(reader))[1] == BODY
        writer.close()


async def test_half_an_answer_is_not_kept_back(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"GET /half HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await reader.read()
        writer.close()


async def test_a_client_is_told_at_once_to_continue(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(REQUEST + b"Expect: 100-continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(BODY)
        assert b" 200 " in (await answer(reader))[0]
        writer.close()


async def test_nonsense_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"nonsense\r\n\r\n")
        assert b" 400 " in await reader.read()
        writer.close()


async def test_a_connection_is_closed_when_it_is_idle_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        system.may_answer.clear()
        writer.write(REQUEST + b"\r\n" + BODY)
        await system.asked.wait()
        with pytest.raises(TimeoutError):  # a request under way is not idle
            async with asyncio.timeout(0.3):
                await reader.read(1)
        system.may_answer.set()
        assert (await answer(reader))[1] == BODY
        assert await reader.read() == b""
        writer.close()


async def test_the_end_waits_for_requests_and_not_for_idle_connections(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        idle_reader, idle_writer = await system.connect()
        reader, writer = await system.connect()
        system.may_answer.clear()
        writer.write(REQUEST + b"\r\n" + BODY)
        await system.asked.wait()
        system.stopping.set()
        assert await idle_reader.read() == b""
        assert not system.task.done()
        system.may_answer.set()
        assert (await answer(reader))[1] == BODY
        assert await reader.read() == b""
        for each in (idle_writer, writer):
            each.close()


async def test_a_request_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.1)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        system.may_answer.clear()
        writer.write(REQUEST + b"\r\n" + BODY)
        await system.asked.wait()
        system.stopping.set()
        await system.task
        assert b" 500 " in await reader.read()
        writer.close()


async def test_an_application_that_cannot_start_ends_it(tmp_path: Path) -> None:
    app = Quart("broken", static_folder=None)

    @app.before_serving
    async def fail() -> None:
        raise RuntimeError("it does not start")

    async def stopped() -> None:
        raise AssertionError("it was served")

    listener = Listener(Bind(path=str(tmp_path / "api.sock")))
    with listener.socket, pytest.raises(Exception, match="it does not start"):
        await server.serve(app, listener, stopped)
