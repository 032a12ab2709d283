"""Warns, once and loudly, when the ledger's server would not keep what it is given."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from mailjob import meters
from mailjob.errors import LedgerUnavailableError
from mailjob.ledger import Ledger

INTERVAL_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


async def watch_durability(ledger: Ledger) -> None:
    """Look now and then; log every change. Runs until cancelled."""
    known: list[str] = []
    unreachable = False
    while True:
        try:
            problems = await ledger.durability()
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
        meters.LEDGER_UP.set(1)
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
