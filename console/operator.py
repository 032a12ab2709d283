"""What an operator does on the ledger itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mailjob.errors import ConsoleError
from mailjob.ledger import Ledger

T = TypeVar("T")


def with_ledger(redis_url: str, use: Callable[[Ledger], Awaitable[T]]) -> T:
    """Open the ledger, use it, close it."""

    async def run() -> T:
        ledger = Ledger(redis_url, reply_seconds=5.0)
        try:
            return await use(ledger)
        finally:
            await ledger.close()

    return asyncio.run(run())


def resolve_job(redis_url: str, job_id: str, decision: str, retention_seconds: float) -> None:
    """Settle an uncertain job as ``sent``, or queue it to ``resend``. Raises ConsoleError."""
    retention_ms = int(retention_seconds * 1000)
    outcome = with_ledger(
        redis_url, lambda ledger: ledger.resolve(job_id, decision, retention_ms=retention_ms)
    )
    if outcome == "unknown":
        raise ConsoleError(f"there is no job {job_id}")
    if outcome != "resolved":
        raise ConsoleError(f"job {job_id} is {outcome}; only an uncertain job can be resolved")
