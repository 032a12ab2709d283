"""The ledger and its broker: reachable, safe, and worked off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from console.doctor.finding import Finding, Verdict
from console.operator import with_ledger
from mailjob import topology
from mailjob.errors import AsyncEmailError
from mailjob.ledger import Ledger
from mailjob.records import Census

CLOCK_SECONDS: Final = 2.0
LATE_SECONDS: Final = 60.0
OLDEST_REDIS: Final = (6, 2)


def look_at_ledger(url: str, most_pending: int) -> Iterator[Finding]:
    async def look(ledger: Ledger) -> tuple[Census, list[str], float, str]:
        await ledger.probe()
        server_seconds, version = await ledger.server()
        return await ledger.census(), await ledger.durability(), server_seconds, version

    try:
        census, problems, server_seconds, version = with_ledger(url, look)
    except AsyncEmailError as error:
        advice = "is Redis running, and is REDIS_URL right? systemctl status redis-server"
        yield Finding("ledger", Verdict.FAILED, str(error), advice)
        return
    if tuple(map(int, version.split(".")[:2])) < OLDEST_REDIS:
        yield Finding("ledger", Verdict.FAILED, f"Redis {version}", "6.2 or later is needed")
    else:
        yield Finding("ledger", Verdict.OK, f"Redis {version} takes writes")
    for problem in problems:
        advice = "accepted jobs can be lost: set it in redis.conf and restart Redis"
        yield Finding("durability", Verdict.WARNING, problem, advice)
    if not problems:
        yield Finding("durability", Verdict.OK, "every write is synced, nothing is evicted")
    drift = abs(time.time() - server_seconds)
    if drift > CLOCK_SECONDS:
        yield Finding("clock", Verdict.WARNING, f"{drift:.0f} s from Redis's", "is time synchronised?")
    else:
        yield Finding("clock", Verdict.OK, "agrees with Redis's")
    yield from _work(census, most_pending)


def _work(census: Census, most_pending: int) -> Iterator[Finding]:
    if census.consumers:
        yield Finding("consumers", Verdict.OK, f"{census.consumers} of them")
    else:
        advice = "start one: systemctl start async-email-consumer@1"
        yield Finding("consumers", Verdict.FAILED, "none was seen of late", advice)
    late = census.oldest_due_age_ms / 1000
    if late > LATE_SECONDS:
        advice = "are the consumers busy, or the relay in trouble? see their log"
        yield Finding("backlog", Verdict.WARNING, f"the oldest due job waits for {late:.0f} s", advice)
    else:
        yield Finding("backlog", Verdict.OK, f"no due job waits for long; {most_pending:,} may wait")


def look_at_broker(url: str) -> Finding:
    try:
        with topology.connect(url) as connection:
            rung = topology.declare(connection.channel())
    except Exception as error:  # noqa: BLE001 - Kombu's transports raise what they like
        advice = "mail goes out, but later; is BROKER_URL right?"
        return Finding("broker", Verdict.WARNING, str(error), advice)
    return Finding("broker", Verdict.OK, f"{rung} doorbells wait")
