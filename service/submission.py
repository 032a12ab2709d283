"""Accept, then ring: the order in which a job becomes durable and then known to the consumers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailjob import meters
from mailjob.failpoints import Failpoint, reached
from mailjob.job import Job
from mailjob.ledger import Ledger
from mailjob.records import Accepted, Idempotency


class Submission:
    """``ring`` must neither block nor fail: an accepted job is safe without it."""

    def __init__(
        self,
        ledger: Ledger,
        ring: Callable[[Sequence[str]], None],
        *,
        grace_seconds: float,
        most_pending: int,
    ) -> None:
        self._ledger = ledger
        self._ring = ring
        self._grace_ms = int(grace_seconds * 1000)
        self._most_pending = most_pending

    async def submit(self, job: Job, idempotency: Idempotency | None) -> Accepted:
        """Raises LedgerUnavailableError, IdempotencyConflictError, BacklogFullError."""
        reached(Failpoint.BEFORE_ACCEPT)
        accepted = await self._ledger.accept(
            job,
            grace_ms=self._grace_ms,
            most_pending=self._most_pending,
            idempotency=idempotency,
        )
        if accepted.replayed:
            meters.REPLAYED.inc()
        else:
            meters.ACCEPTED.inc()
            reached(Failpoint.AFTER_ACCEPT)
            self._ring((accepted.job_id,))
        return accepted
