"""``async-email doctor``: looks at everything that mail depends on, and says what to do."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import dns.exception
import dns.resolver

from console.operator import with_ledger
from consumer.courier import Relay
from consumer.courier.opening import open_session
from mailjob import topology
from mailjob.errors import AsyncEmailError, SettingsError
from mailjob.ledger import Ledger
from mailjob.records import Census
from mailjob.settings import ConsumerSettings, ServiceSettings, Source, read_settings

FREE_DISK: Final = 0.1
CLOCK_SECONDS: Final = 2.0
LATE_SECONDS: Final = 60.0
DNS_SECONDS: Final = 3.0
OLDEST_REDIS: Final = (6, 2)
PORTS: Final = {
    6379: "Redis",
    8000: "the API",
    9101: "a consumer's metrics",
    9102: "a consumer's metrics",
}
LISTENING: Final = "0A"
"""A socket's state in /proc/net/tcp."""


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` says what to do, where something is wrong."""

    subject: str
    verdict: Verdict
    words: str
    advice: str = ""

    def as_line(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.verdict:8} {self.subject}: {self.words}{advice}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(source: Source, dotenv: Path) -> Iterator[Finding]:
    """One finding after the other, as they come."""
    try:
        consumer = read_settings(ConsumerSettings, source)
        service = read_settings(ServiceSettings, source)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", Verdict.FAILED, problem, "see the table in the README")
        return
    yield Finding("settings", Verdict.OK, "all can be used")
    yield from _files(dotenv)
    yield from _ledger(consumer.redis_url, service.max_pending)
    yield _broker(consumer.broker_url)
    yield _relay(consumer)
    yield from _sender_domain(consumer.mail_from.address.rpartition("@")[2])
    yield from _open_ports()
    yield _disk()
    yield from _units()


def _files(dotenv: Path) -> Iterator[Finding]:
    if not dotenv.exists():
        return
    open_to_all = dotenv.stat().st_mode & 0o004
    if open_to_all and "PASSWORD" in dotenv.read_text(encoding="utf-8", errors="replace"):
        advice = f"chmod 600 {dotenv}"
        yield Finding("files", Verdict.FAILED, f"everybody can read {dotenv} with its password", advice)
    else:
        yield Finding("files", Verdict.OK, f"{dotenv} is not open to everybody")


def _ledger(url: str, most_pending: int) -> Iterator[Finding]:
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


def _broker(url: str) -> Finding:
    try:
        with topology.connect(url) as connection:
            rung = topology.declare(connection.channel())
    except Exception as error:  # noqa: BLE001 - Kombu's transports raise what they like
        advice = "mail goes out, but later; is BROKER_URL right?"
        return Finding("broker", Verdict.WARNING, str(error), advice)
    return Finding("broker", Verdict.OK, f"{rung} doorbells wait")


def _relay(settings: ConsumerSettings) -> Finding:
    relay = Relay.of(settings)

    async def greet() -> None:
        session = await open_session(relay, socket.getfqdn())
        await session.quit()

    try:
        asyncio.run(greet())
    except AsyncEmailError as error:
        advice = "check SMTP_HOST, SMTP_PORT, SMTP_TLS, SMTP_USERNAME and SMTP_PASSWORD"
        return Finding("relay", Verdict.FAILED, str(error), advice)
    login = "and takes the login" if relay.username else "without a login"
    return Finding("relay", Verdict.OK, f"{relay.host}:{relay.port} answers {login}")


def _sender_domain(domain: str) -> Iterator[Finding]:
    """What receivers look at: without these records mail lands in the spam folder."""
    try:
        spf = any(text.startswith("v=spf1") for text in _texts(domain))
        dmarc = any(text.startswith("v=DMARC1") for text in _texts(f"_dmarc.{domain}"))
    except dns.exception.DNSException as error:
        yield Finding("sender", Verdict.WARNING, f"DNS does not answer for {domain}: {error}"[:200])
        return
    if spf:
        yield Finding("sender", Verdict.OK, f"{domain} has an SPF record")
    else:
        advice = "publish one that includes your relay; the relay's provider says which"
        yield Finding("sender", Verdict.WARNING, f"{domain} has no SPF record", advice)
    if dmarc:
        yield Finding("sender", Verdict.OK, f"{domain} has a DMARC record")
    else:
        advice = 'publish _dmarc TXT "v=DMARC1; p=none; rua=mailto:..." and DKIM as the relay says'
        yield Finding("sender", Verdict.WARNING, f"{domain} has no DMARC record", advice)


def _texts(name: str) -> list[str]:
    try:
        answer = dns.resolver.resolve(name, "TXT", lifetime=DNS_SECONDS)
    except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
        return []
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


def _open_ports() -> Iterator[Finding]:
    """Of ours, those that listen on more than this machine's own addresses (Linux)."""
    found = sorted(port for port in _world_ports() if port in PORTS)
    for port in found:
        advice = "bind it to 127.0.0.1, or close it in the firewall"
        yield Finding("ports", Verdict.WARNING, f"{PORTS[port]} listens to the world on {port}", advice)
    if not found:
        yield Finding("ports", Verdict.OK, "nothing of this system listens to the world")


def _world_ports() -> set[int]:
    ports = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        for _, local, _, state, *_rest in (row.split() for row in rows):
            address, _, port = local.partition(":")
            local_only = address.endswith("7F") or address == "0" * 24 + "01000000"
            if state == LISTENING and not local_only:
                ports.add(int(port, 16))
    return ports


def _disk() -> Finding:
    place = next(path for path in (Path("/var/lib/redis"), Path("/")) if path.is_dir())
    usage = shutil.disk_usage(place)
    if usage.free < FREE_DISK * usage.total:
        free = f"{usage.free / 2**30:.1f} GiB are free at {place}"
        return Finding("disk", Verdict.WARNING, free, "a full disk stops all accepts: make room")
    return Finding("disk", Verdict.OK, f"{usage.free / 2**30:.1f} GiB are free at {place}")


def _units() -> Iterator[Finding]:
    if not Path("/run/systemd/system").is_dir():
        return
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "async-email-*"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - ours
    for row in filter(None, map(str.split, listed.splitlines())):
        unit, _, active = row[:3]
        if active == "active":
            yield Finding("units", Verdict.OK, f"{unit} is active")
        else:
            yield Finding("units", Verdict.FAILED, f"{unit} is {active}", f"journalctl -u {unit} -n 20")
