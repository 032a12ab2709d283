"""The jobs a consumer holds a claim on, each on its way to the relay."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from mailjob import meters
from mailjob.records import Claim

LOOK_SECONDS: Final = 0.5
"""A mark wakes nobody; this is how often it is looked for where that matters."""

log = structlog.get_logger()


class Flight:
    """One claimed job. ``marked`` turns True when its content may go out."""

    __slots__ = ("claim", "lost", "marked", "started", "task")

    task: asyncio.Task[None]

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.marked = False
        self.lost = False
        self.started = time.monotonic()

    def age_ms(self) -> int:
        """Server time since the job was accepted, as far as this machine's clock can tell."""
        return self.claim.age_ms + int((time.monotonic() - self.started) * 1000)


class Flights:
    """At most ``most`` at once, as far as ``room`` is asked before more are launched."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._newest: dict[str, Flight] = {}
        self._landed = asyncio.Event()

    async def room(self) -> int:
        """Wait until there is room; how many more may be launched."""
        while self._count >= self._most:
            self._landed.clear()
            await self._landed.wait()
        return self._most - self._count

    async def handed_over(self) -> None:
        """Wait until none is left whose mail may still be refused a session."""
        while any(not flight.marked for flight in self._newest.values()):
            self._landed.clear()
            # Not asyncio.wait_for: before Python 3.12 it can swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._landed.wait()

    def launch(self, claim: Claim, fly: Callable[[Flight], Coroutine[Any, Any, None]]) -> None:
        flight = Flight(claim)
        self._count += 1
        self._newest[claim.job.id] = flight
        meters.IN_FLIGHT.inc()
        flight.task = asyncio.create_task(fly(flight))
        flight.task.add_done_callback(lambda _: self._land(flight))

    def now(self) -> list[Flight]:
        return list(self._newest.values())

    def fences(self) -> dict[str, int]:
        """What proves the claims to the ledger: job id to fence."""
        return {job_id: flight.claim.fence for job_id, flight in self._newest.items()}

    def note_lost(self, job_ids: Sequence[str], fences: dict[str, int]) -> None:
        """These were claimed by others since. Their own next step notices and stops."""
        for job_id in job_ids:
            flight = self._newest.get(job_id)
            if flight is not None and flight.claim.fence == fences[job_id] and not flight.lost:
                flight.lost = True
                meters.CLAIMS_LOST.labels(step="renew").inc()
                log.warning("claim_lost", job_id=job_id, step="renew")

    def _land(self, flight: Flight) -> None:
        self._count -= 1
        self._landed.set()
        meters.IN_FLIGHT.dec()
        # The same job may be in flight again, claimed anew after this claim was lost.
        if self._newest.get(flight.claim.job.id) is flight:
            del self._newest[flight.claim.job.id]
