"""Doorbells through Kombu: rung by the service's publisher, heard by the consumer's intake."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import redis
from ledger_server import LedgerServer
from programs import wait_until

from consumer.intake import Inbox, Intake
from mailjob import topology
from mailjob.job import new_job_id
from mailjob.meters import REGISTRY
from service import publisher as publisher_module
from service.publisher import Publisher

QUEUE = "async-email.doorbells"


@pytest.fixture
def publisher(server: LedgerServer) -> Iterator[Publisher]:
    publisher = Publisher(server.url)
    publisher.start()
    yield publisher
    publisher.stop(5)


@asynccontextmanager
async def intake(server: LedgerServer) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    thread = Intake(server.url, inbox)
    thread.start()
    try:
        yield inbox
    finally:
        thread.stop()
        await asyncio.to_thread(thread.finish, [], 10)


async def hear(inbox: Inbox, count: int) -> list[str]:
    heard: list[str] = []
    async with asyncio.timeout(10):
        while len(heard) < count:
            heard += await inbox.take(count)
    return heard


def ring(server: LedgerServer, *doorbells: list[str]) -> None:
    with topology.connect(server.url) as connection:
        producer = connection.Producer(channel=connection.channel())
        topology.declare(producer.channel)
        for ids in doorbells:
            topology.ring(producer, ids)


def poison() -> float:
    return REGISTRY.get_sample_value("async_email_poison_messages_total") or 0


async def test_what_is_rung_is_heard(server: LedgerServer, publisher: Publisher) -> None:
    ids = [new_job_id() for _ in range(250)]
    async with intake(server) as inbox:
        publisher.ring(ids)
        assert await hear(inbox, 250) == ids


def test_a_doorbell_carries_what_came_together(publisher: Publisher, store: redis.Redis) -> None:
    wait_until(lambda: publisher.up)
    for _ in range(250):
        publisher.ring([new_job_id()])
    wait_until(lambda: rung(store) == 250)
    assert store.llen(QUEUE) < 20


def rung(store: redis.Redis) -> int:
    return sum(ids_in(str(message)) for message in store.lrange(QUEUE, 0, -1))


def ids_in(message: str) -> int:
    return len(topology.decode_doorbell(base64.b64decode(json.loads(message)["body"])))


@pytest.mark.filterwarnings("ignore:Message could not be delivered")  # Kombu says so, and delivers
def test_a_deleted_binding_loses_nothing(publisher: Publisher, store: redis.Redis) -> None:
    wait_until(lambda: publisher.up)
    store.delete("_kombu.binding.async-email")
    publisher.ring([new_job_id()])
    wait_until(lambda: store.llen(QUEUE) == 1)


def test_a_publisher_without_a_broker_never_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MOST_WAITING", 1000)
    lonely = Publisher("redis://127.0.0.1:1/0")
    lonely.start()
    before = REGISTRY.get_sample_value("async_email_doorbells_total", {"result": "dropped"}) or 0
    for _ in range(2000):
        lonely.ring([new_job_id()])
    assert not lonely.up
    dropped = REGISTRY.get_sample_value("async_email_doorbells_total", {"result": "dropped"}) or 0
    assert dropped - before >= 1000
    lonely.stop(5)


async def test_both_sides_come_back_after_the_broker_did(
    server: LedgerServer, publisher: Publisher
) -> None:
    async with intake(server) as inbox:
        publisher.ring([new_job_id()])
        await hear(inbox, 1)
        await asyncio.to_thread(server.kill)
        after = new_job_id()
        publisher.ring([after])
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(15):
            while after not in await inbox.take(1):
                pass


POISON: list[Callable[[redis.Redis], object]] = [
    lambda store: store.lpush(QUEUE, "not json"),
    lambda store: store.lpush(QUEUE, "[" * 100_000),
    lambda store: store.lpush(QUEUE, "{}"),
    lambda store: store.lpush(QUEUE, "null"),
    lambda store: store.lpush(QUEUE, json.dumps({"body": "x", "properties": {}})),
    lambda store: store.lpush(QUEUE, json.dumps({"__type__": "uuid", "__value__": "x"})),
    lambda store: store.lpush(QUEUE, raw_message("bm8ganNvbg==")),
    lambda store: store.lpush(QUEUE, raw_message("e30=")),
    lambda store: store.lpush(QUEUE, raw_message("not base64 at all!")),
    lambda store: store.lpush(QUEUE, b"\xff\xfe\xfd"),
]


def raw_message(body: str) -> str:
    properties = {
        "delivery_tag": "t",
        "body_encoding": "base64",
        "delivery_info": {"exchange": "async-email", "routing_key": "due"},
    }
    headers = {"content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
    return json.dumps({"body": body, "properties": properties, **headers})


@pytest.mark.parametrize("number", range(len(POISON)))
async def test_poison_is_counted_and_dropped(
    server: LedgerServer, store: redis.Redis, number: int
) -> None:
    before = poison()
    good = new_job_id()
    async with intake(server) as inbox:
        await asyncio.to_thread(wait_until, lambda: store.exists("_kombu.binding.async-email"))
        POISON[number](store)
        ring(server, [good])
        assert await hear(inbox, 1) == [good]
    assert poison() == before + 1


async def test_a_stopping_intake_gives_back_what_nobody_will_claim(
    server: LedgerServer, store: redis.Redis
) -> None:
    inbox = Inbox()
    thread = Intake(server.url, inbox)
    thread.start()
    heard = new_job_id()
    ring(server, [heard])
    await hear(inbox, 1)
    thread.stop()
    unheard = [new_job_id() for _ in range(150)]
    await asyncio.to_thread(thread.finish, [heard, *unheard], 10)
    assert rung(store) == 151


async def test_a_full_inbox_leaves_doorbells_in_the_broker(
    server: LedgerServer, store: redis.Redis
) -> None:
    ids = [new_job_id() for _ in range(60)]
    ring(server, *([job_id] for job_id in ids))
    async with intake(server) as inbox:
        first = await hear(inbox, 1)
        # Twenty in the inbox, one in the thread's hand, and the one taken.
        await asyncio.to_thread(wait_until, lambda: store.llen(QUEUE) == 60 - 22)
        assert sorted(first + await hear(inbox, 59)) == sorted(ids)


async def test_given_ids_go_first() -> None:
    inbox = Inbox()
    inbox.give(["a", "b"])
    waiting = asyncio.create_task(inbox.given_taken())
    assert await inbox.take(1) == ["a"]
    assert not waiting.done()
    assert await inbox.take(5) == ["b"]
    await waiting
    assert inbox.left() == []
