"""The pool: opens sessions on demand, keeps them warm, and backs off from a relay in trouble."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import deque
from typing import Final

import structlog

from consumer.backoff import pause
from consumer.courier.session import Mail, Mark, Relay, Session, open_session
from consumer.verdict import Reply, Step, blames_relay
from mailjob import meters
from mailjob.errors import RelayError

IDLE_SECONDS: Final = 30.0
"""Shorter than the idle limits of common relays, so that it is mostly we who close."""

LIMIT_SECONDS: Final = 30.0
"""How long to do with fewer sessions before one more is tried."""

log = structlog.get_logger()


class Courier:
    """At most ``connections`` sessions at once. Belongs to one event loop.

    A relay may allow fewer than that, or fewer for now: when it refuses one more while others work, mail
    waits for those, and one more is tried only after a while.
    """

    def __init__(self, relay: Relay, connections: int) -> None:
        self._relay = relay
        self._connections = connections
        self._limit = connections
        self._idle: deque[Session] = deque()
        self._raising: asyncio.TimerHandle | None = None
        self._working = 0
        """Open sessions, idle ones included."""
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._failures = 0
        self._paused_until = 0.0
        self._local_hostname = ""

    @property
    def in_doubt(self) -> bool:
        """The relay was in trouble last time: try it with one mail before trusting it with more."""
        return self._failures > 0

    async def ready(self) -> None:
        """Wait until the relay's pause is over."""
        while (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def send(self, mail: Mail, mark: Mark) -> dict[str, Reply]:
        """The decisive reply for each recipient. What ``mark`` raises is raised again."""
        replies = await self._try(mail, mark, fresh=False)
        if replies is None:  # the session was closed while it was idle: nobody's fault
            replies = await self._try(mail, mark, fresh=True)
        return replies or {}

    async def tidy(self) -> None:
        """Close sessions that were idle for long; runs until cancelled."""
        while True:
            await asyncio.sleep(IDLE_SECONDS / 6)
            while self._idle and (
                not self._idle[0].usable or time.monotonic() - self._idle[0].idle_since > IDLE_SECONDS
            ):
                session = self._idle.popleft()
                self._count_closed()
                await session.quit()

    async def close(self) -> None:
        sessions, self._idle = list(self._idle), deque()
        await asyncio.gather(*(session.quit() for session in sessions))
        for _ in sessions:
            self._count_closed()

    async def _try(self, mail: Mail, mark: Mark, *, fresh: bool) -> dict[str, Reply] | None:
        """None when a warm session turned out to be closed before anything was said on it."""
        try:
            session = await self._take(fresh=fresh)
        except RelayError as error:
            reply = Reply(Step.CONNECT, error.code, str(error))
            self._note_trouble(reply)
            return dict.fromkeys(mail.recipients, reply)
        warm = session.used
        started = time.perf_counter()
        try:
            replies = await session.send(mail, mark)
        finally:
            meters.SEND_SECONDS.observe(time.perf_counter() - started)
            self._give_back(session)
        if warm and _was_closed(replies):
            return None
        self._note(replies)
        return replies

    async def _take(self, *, fresh: bool) -> Session:
        """A warm session, or a new one, or the first that becomes free. Raises RelayError."""
        queue = self._waiting.append
        while True:
            if fresh:
                self._drop_idle()
            if (session := self._warm()) is not None:
                return session
            if self._working + self._opening < self._limit:
                try:
                    return await self._open()
                except RelayError as error:
                    if not self._working:
                        raise
                    self._lower_limit(error)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue(waiter)
            queue = self._waiting.appendleft  # who was overtaken goes first the next time
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # it was our turn: let the next one have it
                raise

    def _give_back(self, session: Session) -> None:
        if session.usable:
            self._idle.append(session)
        else:
            session.close()
            self._count_closed()
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _lower_limit(self, error: RelayError) -> None:
        """The relay refused one session more than it has: do with these for a while."""
        log.warning("relay_allows_fewer_sessions", sessions=self._working, error=str(error))
        self._limit = self._working
        if self._raising is not None:
            self._raising.cancel()
        self._raising = asyncio.get_running_loop().call_later(LIMIT_SECONDS, self._raise_limit)

    def _raise_limit(self) -> None:
        more = min(self._limit, self._connections - self._limit)
        self._limit += more
        self._raising = None
        if self._limit < self._connections:
            self._raising = asyncio.get_running_loop().call_later(LIMIT_SECONDS, self._raise_limit)
        for _ in range(more):
            self._wake()

    def _count_closed(self) -> None:
        self._working -= 1
        meters.RELAY_CONNECTIONS.set(self._working)
        if not self._working:
            self._limit = self._connections

    def _drop_idle(self) -> None:
        """What one session met (a restart of the relay) the other idle ones may have met as well."""
        while self._idle:
            self._idle.popleft().close()
            self._count_closed()

    def _warm(self) -> Session | None:
        """The session used last, so that the others can grow cold."""
        while self._idle:
            session = self._idle.pop()
            if session.usable:
                return session
            session.close()
            self._count_closed()
        return None

    async def _open(self) -> Session:
        if self._paused_until > time.monotonic():
            self._wake()
            raise RelayError(f"relay {self._relay.host}:{self._relay.port} is in trouble; waiting")
        self._opening += 1
        try:
            if not self._local_hostname:
                self._local_hostname = await asyncio.to_thread(socket.getfqdn)
            session = await open_session(self._relay, self._local_hostname)
        except BaseException:
            self._wake()
            raise
        finally:
            self._opening -= 1
        self._working += 1
        meters.RELAY_CONNECTIONS.set(self._working)
        return session

    def _note(self, replies: dict[str, Reply]) -> None:
        trouble = next((reply for reply in replies.values() if blames_relay(reply)), None)
        if trouble is not None:
            self._note_trouble(trouble)
        elif any(reply.code for reply in replies.values()):
            if self._failures:
                log.info("relay_recovered", failures=self._failures)
            self._failures = 0

    def _note_trouble(self, reply: Reply) -> None:
        """Failures during a pause belong to the one that began it."""
        if reply.step is Step.CONNECT:
            meters.RELAY_ERRORS.inc()
        if time.monotonic() < self._paused_until:
            return
        self._failures += 1
        seconds = pause(self._failures, random.random())
        self._paused_until = time.monotonic() + seconds
        log.warning("relay_trouble", reply=str(reply), pause_seconds=round(seconds, 1))


def _was_closed(replies: dict[str, Reply]) -> bool:
    """The connection was gone, or was being closed (421), before MAIL was answered."""
    return all(reply.step is Step.MAIL and reply.code in {0, 421} for reply in replies.values())
