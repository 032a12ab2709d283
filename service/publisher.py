"""Rings doorbells: one thread owns the Kombu connection, the event loop only leaves ids with it.

An answer never waits for a doorbell. When the broker is down or slow, ids gather up to a bound and are
dropped beyond it: the consumer's reconciler finds their jobs without them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import structlog

from mailjob import meters, topology

MOST_WAITING: Final = 100_000
"""Ids. About 10 MB; a minute of accepts at a high rate."""

PACE_SECONDS: Final = 0.001
"""After each id that was rung for, at most LONGEST_PACE_SECONDS. A job alone is rung for at once; under
load a doorbell carries the ids of this time, and the thread leaves the interpreter to the event loop: at
3,000 accepts a second, ringing every 5 ms cost each of them 100 us."""

LONGEST_PACE_SECONDS: Final = 0.05

_DECLARE_SECONDS = 5.0
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 3.0

log = structlog.get_logger()


class Publisher:
    """``ring`` may be called from one other thread; everything else happens in the owner thread."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._ids: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._taken = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._down_reported = False
        self.up = False
        """Whether the last thing tried on the broker worked."""

    def start(self) -> None:
        self._thread.start()

    def ring(self, ids: Sequence[str]) -> None:
        """Say that these jobs are due. Never blocks, never fails."""
        if self._waiting - self._taken + len(ids) > MOST_WAITING:
            meters.DOORBELLS.labels(result="dropped").inc()
            return
        self._waiting += len(ids)
        self._ids.put(ids)

    def stop(self, seconds: float) -> None:
        """Ring what is left, for at most ``seconds``."""
        self._stopping.set()
        self._ids.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        unsent: list[str] = []
        while True:
            try:
                with topology.connect(self._broker_url) as connection:
                    self._serve(connection, unsent)
            except Exception as error:  # noqa: BLE001 - whatever broke, the doorbells must go on
                if self.up:
                    backoff = _FIRST_BACKOFF
                self._note_down(error)
            else:
                return
            if self._stopping.wait(backoff):
                log.warning("doorbells_left", jobs=self._waiting - self._taken + len(unsent))
                return
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    def _serve(self, connection: Any, unsent: list[str]) -> None:  # noqa: ANN401 - Kombu is untyped
        producer = connection.Producer(channel=connection.channel())
        meters.QUEUE_DEPTH.set(topology.declare(producer.channel))
        log.info("broker_connected")
        self.up, self._down_reported = True, False
        meters.BROKER_UP.set(1)
        measured = time.monotonic()
        quiet_until = 0.0
        while True:
            if not unsent and not self._take(unsent):
                return
            if (wait := quiet_until - time.monotonic()) > 0:
                time.sleep(wait)
                self._take_more(unsent)
            pace = min(PACE_SECONDS * len(unsent), LONGEST_PACE_SECONDS)
            while unsent:
                topology.ring(producer, unsent[: topology.MOST_IDS])
                meters.DOORBELLS.labels(result="rung").inc()
                del unsent[: topology.MOST_IDS]
            quiet_until = time.monotonic() + pace
            if time.monotonic() - measured > _DECLARE_SECONDS:
                meters.QUEUE_DEPTH.set(topology.declare(producer.channel))
                measured = time.monotonic()

    def _take(self, unsent: list[str]) -> bool:
        """Wait for ids, then take all there are. False when there will be no more."""
        try:
            ids = self._ids.get(timeout=_DECLARE_SECONDS)
        except queue.Empty:
            return True
        if ids is not None:
            unsent += ids
            self._taken += len(ids)
            self._take_more(unsent)
        return ids is not None

    def _take_more(self, unsent: list[str]) -> None:
        """Take what is there already."""
        while True:
            try:
                ids = self._ids.get_nowait()
            except queue.Empty:
                return
            if ids is None:  # the end; seen again when all before it has been rung
                self._ids.put(None)
                return
            unsent += ids
            self._taken += len(ids)

    def _note_down(self, error: Exception) -> None:
        if not self._down_reported:
            log.warning(
                "broker_lost", error=str(error), hint="doorbells wait; the reconciler finds their jobs"
            )
        self._down_reported = True
        self.up = False
        meters.BROKER_UP.set(0)
        meters.DOORBELLS.labels(result="failed").inc()
