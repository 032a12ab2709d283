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

log = structlog.get_logger()


class Courier:
    """At most ``connections`` sessions at once. Belongs to one event loop."""

    def __init__(self, relay: Relay, connections: int) -> None:
        self._relay = relay
        self._places = asyncio.Semaphore(connections)
        self._idle: deque[Session] = deque()
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
        async with self._places:
            try:
                session = self._warm() or await self._open()
            except RelayError as error:
                self._note_trouble(Reply(Step.CONNECT, error.code, str(error)))
                return dict.fromkeys(mail.recipients, Reply(Step.CONNECT, error.code, str(error)))
            warm = session.used
            replies = await self._send(session, mail, mark)
            if warm and _was_closed(replies):  # while it was idle: no fault of this mail or the relay
                return await self._send_fresh(mail, mark)
        self._note(replies)
        return replies

    async def _send_fresh(self, mail: Mail, mark: Mark) -> dict[str, Reply]:
        try:
            session = await self._open()
        except RelayError as error:
            reply = Reply(Step.CONNECT, error.code, str(error))
            self._note_trouble(reply)
            return dict.fromkeys(mail.recipients, reply)
        replies = await self._send(session, mail, mark)
        self._note(replies)
        return replies

    async def tidy(self) -> None:
        """Close sessions that were idle for long; runs until cancelled."""
        while True:
            await asyncio.sleep(IDLE_SECONDS / 6)
            while self._idle and (
                not self._idle[0].usable or time.monotonic() - self._idle[0].idle_since > IDLE_SECONDS
            ):
                session = self._idle.popleft()
                meters.RELAY_CONNECTIONS.dec()
                await session.quit()

    async def close(self) -> None:
        sessions, self._idle = list(self._idle), deque()
        await asyncio.gather(*(session.quit() for session in sessions))
        meters.RELAY_CONNECTIONS.dec(len(sessions))

    async def _send(self, session: Session, mail: Mail, mark: Mark) -> dict[str, Reply]:
        started = time.perf_counter()
        try:
            return await session.send(mail, mark)
        finally:
            meters.SEND_SECONDS.observe(time.perf_counter() - started)
            if session.usable:
                self._idle.append(session)
            else:
                session.close()
                meters.RELAY_CONNECTIONS.dec()

    def _warm(self) -> Session | None:
        """The session used last, so that the others can grow cold."""
        while self._idle:
            session = self._idle.pop()
            if session.usable:
                return session
            session.close()
            meters.RELAY_CONNECTIONS.dec()
        return None

    async def _open(self) -> Session:
        if self._paused_until > time.monotonic():
            raise RelayError(f"relay {self._relay.host}:{self._relay.port} is in trouble; waiting")
        if not self._local_hostname:
            self._local_hostname = await asyncio.to_thread(socket.getfqdn)
        session = await open_session(self._relay, self._local_hostname)
        meters.RELAY_CONNECTIONS.inc()
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
