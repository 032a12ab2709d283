"""The pool: lanes that open sessions on demand, keep them warm, and back off from a relay in trouble.

A lane has one session at a time, and takes mail from the queue that all share. Idle lanes wait on a
stack, so that the lane used last is used first and the others can grow cold.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from consumer.backoff import pause
from consumer.courier.errand import Errand, Mark
from consumer.courier.opening import open_session
from consumer.courier.relay import Relay
from consumer.courier.session import QUIT_SECONDS, Session
from consumer.courier.transaction import Mail
from consumer.verdict import Reply, Step, blames_relay
from mailjob import meters
from mailjob.errors import RelayError

IDLE_SECONDS: Final = 30.0
"""Shorter than the idle limits of common relays, so that it is mostly we who close."""

LIMIT_SECONDS: Final = 30.0
"""How long to do with fewer sessions before one more is tried."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Resting:
    """A lane without mail. ``called`` becomes True when there is some, False when the lane is to end."""

    lane: asyncio.Task[None]
    session: Session
    since: float
    called: asyncio.Future[bool]

    def call(self, go_on: bool) -> None:
        if not self.called.done():
            self.called.set_result(go_on)


class Courier:
    """At most ``connections`` sessions at once. Belongs to one event loop.

    A relay may allow fewer than that, or fewer for now: when it refuses one more while others work, mail
    waits for those, and one more is tried only after a while.
    """

    def __init__(self, relay: Relay, connections: int) -> None:
        self._relay = relay
        self._connections = connections
        self._limit = connections
        self._raising: asyncio.TimerHandle | None = None
        self._queue: deque[Errand] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._resting: list[_Resting] = []
        self._opening = 0
        self._open = 0
        """Sessions, resting ones included."""
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
        """The decisive reply for each recipient; code 0 where the relay gave none.

        What ``mark`` raises is raised again. Cancelled, nothing more of the mail is sent.
        """
        errand = Errand(mail, mark)
        self._queue.append(errand)
        self._engage()
        try:
            replies = await errand.replies
        except asyncio.CancelledError:
            if errand.interrupt is not None:
                errand.interrupt()
            raise
        self._note(replies)
        return replies

    async def tidy(self) -> None:
        """Close sessions that were idle for long; runs until cancelled."""
        while True:
            await asyncio.sleep(IDLE_SECONDS / 6)
            oldest = time.monotonic() - IDLE_SECONDS
            for resting in self._resting:
                if resting.since < oldest or not resting.session.usable:
                    resting.call(False)

    async def close(self) -> None:
        """End all sessions: politely where they are idle, at once where they are not."""
        lanes = set(self._lanes)
        for lane in lanes - {resting.lane for resting in self._resting}:
            lane.cancel()
        self._send_home()
        if lanes:
            await asyncio.wait(lanes, timeout=QUIT_SECONDS + 1.0)

    # Lanes

    def _engage(self) -> None:
        """See that a lane takes what is in the queue."""
        while self._resting:
            resting = self._resting.pop()
            if not resting.called.done():
                resting.call(True)
                return
        if len(self._lanes) < self._limit:
            lane = asyncio.create_task(self._work())
            self._lanes.add(lane)
            lane.add_done_callback(self._ended)

    def _ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if self._queue:
            self._engage()

    async def _work(self) -> None:
        """One lane: until it was idle for long, or no session can be opened."""
        errand = self._take()
        session: Session | None = None
        try:
            while errand is not None:
                if session is not None and not session.usable:
                    self._put_away(session)
                    session = None
                if session is None:
                    try:
                        session = await self._open_session()
                    except RelayError as error:
                        self._cope(error, errand)
                        return
                    except Exception as error:  # noqa: BLE001 - whatever it was, its sender is told
                        errand.fail(error)
                        return
                errand = await session.carry(errand, self._take, self._put_back)
                if errand is not None:
                    # What one session met (a restart of the relay) resting ones may have met as well.
                    self._send_home()
                    await asyncio.sleep(0)  # whoever was answered notes the relay's trouble first
                elif session.usable:
                    errand = await self._rest(session)
                errand = errand or self._take()
            if session is not None:
                await session.quit()
        finally:
            if session is not None:
                self._put_away(session)

    def _put_back(self, errand: Errand) -> None:
        self._queue.appendleft(errand)
        self._engage()

    def _take(self) -> Errand | None:
        while self._queue:
            errand = self._queue.popleft()
            if not errand.abandoned():
                return errand
        return None

    async def _rest(self, session: Session) -> Errand | None:
        """Wait for mail; None when the lane is to end."""
        lane, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert lane is not None  # noqa: S101 - for the type checker
        while True:
            resting = _Resting(lane, session, time.monotonic(), loop.create_future())
            self._resting.append(resting)
            try:
                go_on = await resting.called
            finally:
                if resting in self._resting:
                    self._resting.remove(resting)
            if not go_on or (errand := self._take()) is not None:
                return errand if go_on else None

    def _send_home(self) -> None:
        for resting in self._resting:
            resting.call(False)

    async def _open_session(self) -> Session:
        """Raises RelayError."""
        if self._paused_until > time.monotonic():
            raise RelayError(f"relay {self._relay.host}:{self._relay.port} is in trouble; waiting")
        self._opening += 1
        try:
            if not self._local_hostname:
                self._local_hostname = await asyncio.to_thread(socket.getfqdn)
            session = await open_session(self._relay, self._local_hostname)
        except RelayError:
            meters.RELAY_ERRORS.inc()
            raise
        finally:
            self._opening -= 1
        self._open += 1
        meters.RELAY_CONNECTIONS.set(self._open)
        return session

    def _put_away(self, session: Session) -> None:
        session.close()
        self._open -= 1
        meters.RELAY_CONNECTIONS.set(self._open)
        if not self._open:
            self._limit = self._connections

    # A relay in trouble

    def _cope(self, error: RelayError, errand: Errand) -> None:
        """There is no session for this mail: leave it to other lanes, if any of them may have one."""
        if self._open or self._opening:
            self._queue.appendleft(errand)
            self._lower_limit(error)
            return
        self._limit = self._connections
        reply = Reply(Step.CONNECT, error.code, str(error))
        self._note_trouble(reply)
        waiting: Errand | None = errand
        while waiting is not None:
            waiting.settle(dict.fromkeys(waiting.mail.recipients, reply))
            waiting = self._take()

    def _lower_limit(self, error: RelayError) -> None:
        """Do for a while with the sessions there are, and those that may yet open."""
        self._limit = self._open + self._opening
        if time.monotonic() >= self._paused_until:
            log.warning("relay_allows_fewer_sessions", sessions=self._limit, error=str(error))
        if self._raising is not None:
            self._raising.cancel()
        self._raising = asyncio.get_running_loop().call_later(LIMIT_SECONDS, self._raise_limit)

    def _raise_limit(self) -> None:
        more = min(self._limit, self._connections - self._limit)
        self._limit += more
        self._raising = None
        if self._limit < self._connections:
            self._raising = asyncio.get_running_loop().call_later(LIMIT_SECONDS, self._raise_limit)
        for _ in range(min(more, len(self._queue))):
            self._engage()

    def _note(self, replies: dict[str, Reply]) -> None:
        trouble = next((reply for reply in replies.values() if blames_relay(reply)), None)
        if trouble is not None:
            self._note_trouble(trouble)
        elif self._failures and any(reply.code for reply in replies.values()):
            log.info("relay_recovered", failures=self._failures)
            self._failures = 0

    def _note_trouble(self, reply: Reply) -> None:
        """Failures during a pause belong to the one that began it."""
        if time.monotonic() < self._paused_until:
            return
        self._failures += 1
        seconds = pause(self._failures, random.random())
        self._paused_until = time.monotonic() + seconds
        log.warning("relay_trouble", reply=str(reply), pause_seconds=round(seconds, 1))
