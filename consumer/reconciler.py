"""Finds due jobs that no doorbell brought, and jobs of consumers that died.

They are handed to this consumer's own inbox, not rung for: that works without a broker, passes a long
backlog, and multiplies no doorbells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from consumer.intake import Inbox
from mailjob import meters
from mailjob.errors import LedgerUnavailableError
from mailjob.ledger import Ledger
from mailjob.lifecycle import Status
from mailjob.settings import AmbiguousPolicy

MOST_AT_ONCE: Final = 200

RENEWAL_SECONDS: Final = 7.0
"""How long the living consumers may need to renew their leases after the ledger was away: a renewal may
be in its longest wait for a reply (5 s), and is tried again after a second."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Pace:
    """Times are seconds."""

    interval: float
    grace: float
    retention: float
    policy: AmbiguousPolicy


class Reconciler:
    """``renew`` shows the ledger that this consumer lives. It comes before each sweep: a consumer that
    was stopped for a while must not take its own jobs for those of a dead one.
    """

    def __init__(
        self, ledger: Ledger, inbox: Inbox, pace: Pace, renew: Callable[[], Awaitable[None]]
    ) -> None:
        self._ledger = ledger
        self._renew = renew
        self._inbox = inbox
        self._pace = pace

    async def run(self) -> None:
        """Until cancelled. Sweeps again at once while there is more and room for it."""
        while True:
            try:
                wait = await self._sweep()
            except LedgerUnavailableError as error:
                meters.LEDGER_UP.set(0)
                log.warning("sweep_failed", error=str(error))
                await self._ledger_back()
                wait = RENEWAL_SECONDS
            await asyncio.sleep(wait)

    async def _sweep(self) -> float:
        """Take due jobs and hand them over. Gives the seconds until the next sweep."""
        await self._inbox.given_taken()
        await self._renew()
        swept = await self._ledger.reconcile(
            limit=MOST_AT_ONCE,
            grace_ms=int(self._pace.grace * 1000),
            policy=self._pace.policy,
            retention_ms=int(self._pace.retention * 1000),
        )
        if swept.ready:
            meters.SWEPT.inc(len(swept.ready))
            self._inbox.give(swept.ready)
        for job_id in swept.expired:
            meters.LEASES_EXPIRED.inc()
            log.warning("lease_expired", job_id=job_id)
        for job_id in swept.ambiguous:
            meters.AMBIGUOUS.inc()
            log.warning("job_ambiguous", job_id=job_id, policy=self._pace.policy)
        if self._pace.policy is AmbiguousPolicy.HOLD and swept.ambiguous:
            meters.finished(Status.UNCERTAIN).inc(len(swept.ambiguous))
        if swept.unknown:
            meters.LEDGER_ORPHANS.inc(len(swept.unknown))
            log.error("ledger_lost_jobs", job_ids=list(swept.unknown)[:10], jobs=len(swept.unknown))
        census = await self._ledger.census()
        meters.show_census(census)
        if len(swept.ready) == MOST_AT_ONCE:
            return 0.0
        if swept.next_due_ms is None:
            return self._pace.interval
        return min(self._pace.interval, max(swept.next_due_ms / 1000, 0.01))

    async def _ledger_back(self) -> None:
        while True:
            await asyncio.sleep(min(0.5, self._pace.interval))
            try:
                await self._ledger.probe()
            except LedgerUnavailableError:
                continue
            return
