"""Group commit: all calls of one moment travel to the ledger as one pipeline on one connection.

With ``appendfsync always`` the server syncs once for everything it read in one turn of its loop, so a
pipeline of fifty accepts costs one fsync. While one pipeline is under way the next one gathers; when
none is, a call leaves at once: nothing waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from mailjob.errors import LedgerBusyError, LedgerUnavailableError
from mailjob.ledger.packing import Argument, Command, pack
from mailjob.ledger.scripts import Script

MOST_IN_ONE_PIPELINE = 500
MOST_WAITING = 20_000
IDLE_SECONDS = 0.1
"""A connection that was not used for longer is looked at before it is written to."""


class GroupCommit:
    """One connection, one pipeline under way, one gathering. Belongs to one event loop.

    ``reply_seconds`` bounds the whole of a round trip, connecting included: every call is answered or
    failed within it. A failed connection fails all calls that wait, and the next call connects anew.
    """

    def __init__(self, url: str, scripts: dict[str, Script], *, reply_seconds: float) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            socket_read_size=65536,
        )
        self._scripts = scripts
        self._reply_seconds = reply_seconds
        self._connection: AbstractConnection | None = None
        self._used = 0.0
        self._waiting: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._under_way: list[asyncio.Future[Any]] = []
        self._sender: asyncio.Task[None] | None = None

    def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> asyncio.Future[Any]:
        """Call a script; the future holds its raw reply, or LedgerUnavailableError."""
        return self.call(("EVALSHA", self._scripts[script].sha1, len(keys), *keys, *arguments))

    def call(self, command: Command) -> asyncio.Future[Any]:
        """Send a command with the next pipeline."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= MOST_WAITING:
            future.set_exception(LedgerBusyError(f"{MOST_WAITING} calls wait for the ledger"))
            return future
        self._waiting.append((command, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_all())
        return future

    async def close(self) -> None:
        """Let what was called be answered, then close the connection."""
        if self._sender is not None:
            await asyncio.wait({self._sender})
        await self._disconnect()

    async def _send_all(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), MOST_IN_ONE_PIPELINE)
            batch = [self._waiting.popleft() for _ in range(size)]
            try:
                async with asyncio.timeout(self._reply_seconds):
                    await self._exchange(batch)
            except Exception as error:  # noqa: BLE001 - whatever broke (uvloop raises RuntimeError), all are told
                await self._disconnect()
                self._fail(batch, error)

    async def _exchange(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        connection = await self._usable_connection()
        replies = await _round_trip(connection, [command for command, _ in batch])
        unloaded = [call for call, reply in zip(batch, replies, strict=True) if _no_script(reply)]
        if unloaded:  # the server lost its scripts (SCRIPT FLUSH); these calls did not run
            await _round_trip(connection, self._script_loads())
            again = await _round_trip(connection, [command for command, _ in unloaded])
            for (_, future), reply in zip(unloaded, again, strict=True):
                _settle(future, reply)
        for (_, future), reply in zip(batch, replies, strict=True):
            if not _no_script(reply):
                _settle(future, reply)

    async def _usable_connection(self) -> AbstractConnection:
        """The connection, made anew where the server closed it while nothing was asked."""
        idle = time.monotonic() - self._used > IDLE_SECONDS
        if self._connection is not None and idle and await _was_closed(self._connection):
            await self._disconnect()
        self._used = time.monotonic()
        return self._connection or await self._connect()

    async def _connect(self) -> AbstractConnection:
        make: Callable[..., AbstractConnection] = self._pool.connection_class
        connection = make(**self._pool.connection_kwargs)
        self._connection = connection
        await connection.connect()
        for reply in await _round_trip(connection, self._script_loads()):
            if isinstance(reply, Exception):
                raise reply
        return connection

    def _script_loads(self) -> list[Command]:
        return [("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)
            self._connection = None

    def _fail(self, batch: list[tuple[Command, asyncio.Future[Any]]], error: Exception) -> None:
        """Fail this batch and all that waited behind it: none of them may wait a second time."""
        while self._waiting:
            batch.append(self._waiting.popleft())
        reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
        for _, future in batch:
            if not future.done():
                unavailable = LedgerUnavailableError(f"the ledger cannot be used: {reason}")
                unavailable.__cause__ = error
                future.set_exception(unavailable)
                future.exception()  # the caller may be gone; that is no reason for a warning


async def _was_closed(connection: AbstractConnection) -> bool:
    """Nothing was asked: whatever can be read is the end of the connection."""
    try:
        return not connection.is_connected or await connection.can_read()
    except RedisError:
        return True


async def _round_trip(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Send all, then read as many replies. An error reply is an exception in the list."""
    await connection.send_packed_command(b"".join(map(pack, commands)), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except RedisError as error:
            if not connection.is_connected:
                raise
            replies.append(error)
    return replies


def _no_script(reply: object) -> bool:
    return isinstance(reply, NoScriptError)


def _settle(future: asyncio.Future[Any], reply: object) -> None:
    if future.done():  # the caller was cancelled
        return
    if isinstance(reply, Exception):
        refused = LedgerUnavailableError(f"the ledger refused: {reply}")
        refused.__cause__ = reply
        future.set_exception(refused)
        future.exception()
    else:
        future.set_result(reply)
