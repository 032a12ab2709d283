"""Warns, once and loudly, when the ledger's server would not keep what it is given, or did not."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from mailjob import meters
from mailjob.errors import LedgerUnavailableError
from mailjob.ledger import Ledger

INTERVAL_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


async def watch_durability(ledger: Ledger) -> None:
    """Look now and then; log every change. Runs until cancelled."""
    known: list[str] = []
    unreachable = False
    began_ms: int | None = None
    while True:
        try:
            problems = await ledger.durability()
            census = await ledger.census()
        except LedgerUnavailableError as error:
            meters.LEDGER_UP.set(0)
            if not unreachable:
                log.error("ledger_unreachable", error=str(error))
            unreachable = True
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if unreachable:
            log.info("ledger_back")
            unreachable = False
        meters.show_census(census)
        if began_ms is not None and census.began_ms != began_ms:
            meters.LEDGER_EMPTIED.inc()
            log.error("ledger_emptied", hint="every job in it was lost; was it flushed?")
        began_ms = census.began_ms
        meters.LEDGER_DURABLE.set(not problems)
        if problems and problems != known:
            log.error(
                "ledger_not_durable",
                problems=problems,
                hint="set appendonly yes, appendfsync always, maxmemory-policy noeviction",
            )
        elif known and not problems:
            log.info("ledger_durable")
        known = problems
        await asyncio.sleep(INTERVAL_SECONDS)
