"""What a mail costs, counted and not timed, so that noise cannot hide that it grew."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
import redis
from ledger_server import LedgerServer
from programs import wait_until
from quart import Quart
from relay import Relay
from system_under_test import MakeSystem

from console.sink import session as sink_session
from consumer.compose import Composer, compile_template
from consumer.courier import Courier, Mail
from consumer.courier import Relay as Target
from consumer.templates import read_templates
from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.settings import Sender, ServiceSettings, Source, read_settings
from service.app import make_app

MAILS = 300

BODY = b'{"name":"Ada Lovelace","email":"ada@example.org"}'
SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "asgi": {"spec_version": "2.1", "version": "3.0"},
    "method": "POST",
    "scheme": "http",
    "path": "/start-job",
    "raw_path": b"/start-job",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 8000),
    "state": {},
    "extensions": {},
}


class Calls:
    """Counts the Python functions that this thread enters."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.number += event == "call"


def commands(store: redis.Redis) -> Counter[str]:
    """How often the server ran each command, those inside scripts included."""
    statistics: dict[str, dict[str, int]] = store.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): row["calls"] for name, row in statistics.items()})


def test_calls_to_the_ledger_and_the_broker(make_system: MakeSystem, store: redis.Redis) -> None:
    """Accept, claim, mark, complete: four calls a mail; a doorbell for many."""
    system = make_system(Relay(), RECONCILE_SECONDS="60", LEASE_SECONDS="60", SMTP_CONNECTIONS="4")
    system.start("service")
    system.start("consumer")
    system.wait_for(system.accept(), "sent")
    before = commands(store)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: system.accept(), range(MAILS)))
    wait_until(lambda: store.hget("mail:{0}:counts", "sent") == str(MAILS + 1))
    spent = commands(store) - before
    assert spent["evalsha"] / MAILS < 4.1, spent
    assert spent["lpush"] / MAILS <= 1.0
    inside = sum(spent.values()) - spent["info"] - spent["hget"] - spent["evalsha"]
    assert inside / MAILS < 26


async def test_writes_to_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a mail on a busy session; two more to get going, and what opens and closes it."""
    chunks = 0
    receive = sink_session.Session.data_received

    def count(session: sink_session.Session, data: bytes) -> None:
        nonlocal chunks
        chunks += 1
        receive(session, data)

    monkeypatch.setattr(sink_session.Session, "data_received", count)

    async def mark() -> None:
        """It holds."""

    async with Relay().serve() as relay:
        courier = Courier(Target("127.0.0.1", relay.port), 1)
        mail = Mail("hello@example.org", ("ada@example.org",), b"Subject: x\r\n\r\nbody\r\n")
        await asyncio.gather(*(courier.send(mail, mark) for _ in range(MAILS)))
        await courier.close()
        assert len(relay.taken) == MAILS
    assert chunks == MAILS + len(("EHLO", "first envelope", "QUIT"))


def test_calls_to_compose_a_mail() -> None:
    templates = [compile_template(source) for source in read_templates(None)]
    composer = Composer(Sender("hello@example.org", "Shop"), templates)
    jobs = [
        Job(new_job_id(), Body("welcome", {"name": "Ada"}), (Recipient("ada@example.org"),))
        for _ in range(20)
    ]
    composer.compose(jobs[0], 1)
    with Calls() as calls:
        for job in jobs:
            composer.compose(job, 1)
    assert calls.number / len(jobs) < 56


async def start_job(app: Quart) -> None:
    messages = [
        {"type": "http.request", "body": BODY, "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answers.append(message)

    await app(SCOPE, receive, send)  # type: ignore[arg-type]  # plain dictionaries will do
    assert answers[0]["status"] == 202


async def calls_a_request(app: Quart) -> float:
    await start_job(app)
    with Calls() as calls:
        for _ in range(20):
            await start_job(app)
    return calls.number / 20


async def test_calls_to_accept_a_job(server: LedgerServer) -> None:
    """Less than Quart takes for doing nothing: 297 calls beside 385 when this was written."""
    empty = Quart("empty", static_folder=None)

    @empty.post("/start-job")
    async def nothing() -> tuple[str, int]:
        return "", 202

    environ = {"REDIS_URL": server.url, "API_AUTH": "off", "LOG_LEVEL": "info"}
    settings = read_settings(ServiceSettings, Source(environ, Path("/nonexistent")))
    app = make_app(settings)
    async with app.test_app():
        ours = await calls_a_request(app)
    nothing_at_all = await calls_a_request(empty)
    assert ours < 0.85 * nothing_at_all, (ours, nothing_at_all)
