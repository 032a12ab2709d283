"""Takes doorbells from the broker: one thread owns the Kombu connection.

Ids cross into the event loop through ``Inbox``, which is bounded: when it is full the thread stops
popping, and the doorbells wait in the broker.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import structlog
from kombu import Consumer

from consumer.backoff import pause
from mailjob import meters, topology
from mailjob.failpoints import Failpoint, reached

MOST_DOORBELLS: Final = 20
"""In the inbox; up to 100 ids each."""

_POLL_SECONDS = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0
_DECLARE_SECONDS = 5.0

log = structlog.get_logger()


class Inbox:
    """Ids that wait to be claimed: those found by the reconciler first, then those of doorbells."""

    def __init__(self) -> None:
        self._doorbells: queue.Queue[Sequence[str]] = queue.Queue(MOST_DOORBELLS)
        self._given: deque[str] = deque()
        self._rung: deque[str] = deque()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, ids: Sequence[str], stopping: threading.Event) -> bool:
        """From the thread: wait for room. False when ``stopping`` came first."""
        while not stopping.is_set():
            try:
                self._doorbells.put(ids, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            self._loop.call_soon_threadsafe(self._arrived.set)
            return True
        return False

    def give(self, ids: Sequence[str]) -> None:
        """From the event loop: these go before all others."""
        self._given.extend(ids)
        self._arrived.set()

    async def take(self, most: int) -> list[str]:
        """Wait for ids, then take up to ``most``."""
        while not (self._given or self._rung or self._fetch()):
            self._arrived.clear()
            if self._fetch():
                break
            await self._arrived.wait()
        taken: list[str] = []
        while len(taken) < most and (self._given or self._rung or self._fetch()):
            taken.append((self._given or self._rung).popleft())
        if not self._given:
            self._drained.set()
        return taken

    async def given_taken(self) -> None:
        """Wait until all that was given has been taken."""
        self._drained.clear()
        if self._given:
            await self._drained.wait()

    def left(self) -> list[str]:
        """Take all that nobody will claim any more."""
        while self._fetch():
            pass
        left = [*self._given, *self._rung]
        self._given.clear()
        self._rung.clear()
        return left

    def _fetch(self) -> bool:
        try:
            self._rung.extend(self._doorbells.get_nowait())
        except queue.Empty:
            return False
        return True


class Intake:
    """Everything but ``start``, ``stop`` and ``finish`` happens in the owner thread."""

    def __init__(self, broker_url: str, inbox: Inbox) -> None:
        self._broker_url = broker_url
        self._inbox = inbox
        self._stopping = threading.Event()
        self._last: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._unheard: list[str] = []
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop popping. The connection stays open for ``finish``."""
        self._stopping.set()

    def finish(self, ids: Sequence[str], seconds: float) -> None:
        """Ring for jobs that are given back, then end; waits at most ``seconds``."""
        self._last.put(ids)
        self._thread.join(seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with topology.connect(self._broker_url) as connection:
                    channel = connection.channel()
                    meters.QUEUE_DEPTH.set(topology.declare(channel))
                    log.info("broker_connected")
                    meters.BROKER_UP.set(1)
                    failures = 0
                    self._consume(connection, channel)
            except Exception as error:  # noqa: BLE001 - whatever broke, the consumer must go on
                failures += 1
                meters.BROKER_UP.set(0)
                seconds = pause(failures, random.random(), _FIRST_PAUSE)
                seconds = min(seconds, _LONGEST_PAUSE)
                log.warning("broker_lost", error=str(error), pause_seconds=round(seconds, 1))
                self._stopping.wait(seconds)
        self._give_back([*self._last.get(), *self._unheard])

    def _consume(self, connection: Any, channel: Any) -> None:  # noqa: ANN401 - Kombu is untyped
        """Until stopped. Not cancelled then: closing the connection reads what was popped last."""
        Consumer(channel, [topology.DOORBELLS], on_message=self._hear, accept=["json"]).consume()
        broken = (
            *connection.recoverable_connection_errors,
            *connection.recoverable_channel_errors,
            *connection.connection_errors,
            *connection.channel_errors,
        )
        declared = time.monotonic()
        while not self._stopping.is_set():
            try:
                connection.drain_events(timeout=_POLL_SECONDS)
            except TimeoutError:
                if connection.supports_heartbeats:
                    connection.heartbeat_check()
            except KeyError as error:
                # A message without its properties, or Kombu's own books out of order: it raises this
                # for both, so the connection is made anew to be sure.
                self._note_poison(error)
                raise
            except broken:
                raise
            except Exception as error:  # noqa: BLE001 - what the transport cannot read is poison
                self._note_poison(error)
            if time.monotonic() - declared > _DECLARE_SECONDS:
                meters.QUEUE_DEPTH.set(topology.declare(channel))
                declared = time.monotonic()

    def _hear(self, message: Any) -> None:  # noqa: ANN401 - Kombu is untyped
        """Acknowledged at once, not after the claim: a doorbell lost only delays its jobs."""
        message.ack()
        reached(Failpoint.AFTER_POP)
        try:
            ids = topology.decode_doorbell(message.body)
        except topology.PoisonError as error:
            self._note_poison(error)
        else:
            if not self._inbox.put(ids, self._stopping):
                self._unheard += ids

    @staticmethod
    def _note_poison(error: Exception) -> None:
        meters.POISON.inc()
        log.warning("poison_message", error=f"{type(error).__name__}: {error}"[:300])

    def _give_back(self, ids: Sequence[str]) -> None:
        """Ring for what is due again. Without a broker, another consumer's reconciler finds it."""
        if not ids:
            return
        try:
            with topology.connect(self._broker_url) as connection:
                producer = connection.Producer(channel=connection.channel())
                topology.declare(producer.channel)
                for start in range(0, len(ids), topology.MOST_IDS):
                    topology.ring(producer, ids[start : start + topology.MOST_IDS])
        except Exception as error:  # noqa: BLE001 - nothing is lost, only late
            log.warning("doorbells_not_rung", jobs=len(ids), error=str(error))
