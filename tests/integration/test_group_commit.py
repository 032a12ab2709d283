"""Round trips, and what happens when the server goes away."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import uvloop
from ledger_server import LedgerServer

from mailjob.errors import LedgerUnavailableError
from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.ledger import Ledger
from mailjob.ledger.group_commit import IDLE_SECONDS
from mailjob.lifecycle import Status


def new_job() -> Job:
    return Job(new_job_id(), Body("welcome", {"name": "Ada"}), (Recipient("ada@example.org"),))


def reads(store: redis.Redis) -> int:
    return int(store.info("stats")["total_reads_processed"])


async def test_calls_of_one_moment_are_one_round_trip(ledger: Ledger, store: redis.Redis) -> None:
    await ledger.probe()
    before = reads(store)
    await asyncio.gather(*(ledger.accept(new_job(), grace_ms=1000) for _ in range(100)))
    # One read for the pipeline, or a few where the socket splits it, and one for this very question.
    assert reads(store) - before <= 5
    assert (await ledger.census()).counts[Status.QUEUED] == 100


async def test_a_cancelled_caller_disturbs_nobody(ledger: Ledger) -> None:
    await ledger.probe()
    calls = [asyncio.create_task(ledger.accept(new_job(), grace_ms=1000)) for _ in range(10)]
    await asyncio.sleep(0)
    calls[3].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results].count("CancelledError") == 1
    assert [type(result).__name__ for result in results].count("Accepted") == 9
    await ledger.probe()


async def test_lost_scripts_are_loaded_again(ledger: Ledger, store: redis.Redis) -> None:
    await ledger.probe()
    store.script_flush()
    accepted = await asyncio.gather(*(ledger.accept(new_job(), grace_ms=1000) for _ in range(10)))
    assert len({answer.job_id for answer in accepted}) == 10
    assert (await ledger.census()).counts[Status.QUEUED] == 10


async def test_a_killed_server_fails_calls_at_once_and_keeps_what_was_promised(
    server: LedgerServer, ledger: Ledger
) -> None:
    promised = [(await ledger.accept(new_job(), grace_ms=1000)).job_id for _ in range(20)]
    server.kill()
    started = time.monotonic()
    results = await asyncio.gather(
        *(ledger.accept(new_job(), grace_ms=1000) for _ in range(50)), return_exceptions=True
    )
    assert all(isinstance(result, LedgerUnavailableError) for result in results)
    assert time.monotonic() - started < 2.0
    server.start()
    records = [await ledger.read(job_id) for job_id in promised]
    assert all(record is not None for record in records)


async def test_a_server_that_came_back_costs_no_call(server: LedgerServer, ledger: Ledger) -> None:
    """The idle connection that it closed is noticed before it is written to."""
    for _ in range(3):
        await ledger.probe()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await asyncio.wait([asyncio.create_task(asyncio.sleep(IDLE_SECONDS))])
        await ledger.probe()


async def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = tmp_path / "s.sock"
    silent = await asyncio.start_unix_server(silence, str(path))
    ledger = Ledger(f"unix://{path}", reply_seconds=0.3)
    started = time.monotonic()
    with pytest.raises(LedgerUnavailableError, match="did not answer in time"):
        await ledger.probe()
    assert time.monotonic() - started < 1.0
    await ledger.close()
    silent.close()


async def test_who_waits_behind_a_dead_round_trip_waits_no_second_time(tmp_path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = tmp_path / "s.sock"
    silent = await asyncio.start_unix_server(silence, str(path))
    ledger = Ledger(f"unix://{path}", reply_seconds=0.5)
    started = time.monotonic()
    first = asyncio.create_task(ledger.probe())
    await asyncio.wait({first}, timeout=0.1)  # it is under way now
    results = await asyncio.gather(first, ledger.probe(), ledger.probe(), return_exceptions=True)
    assert all(isinstance(result, LedgerUnavailableError) for result in results)
    assert time.monotonic() - started < 0.9
    await ledger.close()
    silent.close()


def test_a_reset_connection_hangs_nobody_under_uvloop(server: LedgerServer) -> None:
    """Writing on a closed transport raises RuntimeError there, not OSError."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(str(server.socket))
        writers.append(writer)
        pumps = [
            asyncio.create_task(pump(reader, to_writer)),
            asyncio.create_task(pump(to_reader, writer)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        to_writer.close()
        await asyncio.gather(*pumps, return_exceptions=True)
        with suppress(OSError):
            await to_writer.wait_closed()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def run() -> None:
        listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
        ledger = Ledger(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}", reply_seconds=2)
        await ledger.probe()
        for writer in writers:
            reset = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
        async with asyncio.timeout(10):
            await asyncio.to_thread(lambda: None)  # the reset arrives while nobody looks
            with suppress(LedgerUnavailableError):
                await ledger.probe()
            await ledger.probe()
            await ledger.close()
            while len(asyncio.all_tasks()) > 1:  # the proxy's
                await asyncio.sleep(0)
        listener.close()

    writers: list[asyncio.StreamWriter] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_a_full_server_accepts_nothing(ledger: Ledger, store: redis.Redis) -> None:
    await ledger.probe()
    store.config_set("maxmemory", 1)
    with pytest.raises(LedgerUnavailableError, match=r"refused.*maxmemory"):
        await ledger.accept(new_job(), grace_ms=1000)
    with pytest.raises(LedgerUnavailableError, match="maxmemory"):
        await ledger.probe()
    store.config_set("maxmemory", 0)
    assert not list(store.scan_iter("mail:*:job:*"))
    await ledger.probe()


async def test_a_read_only_server_accepts_nothing(ledger: Ledger, store: redis.Redis) -> None:
    await ledger.probe()
    store.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(LedgerUnavailableError):
            await ledger.accept(new_job(), grace_ms=1000)
    finally:
        store.replicaof("NO", "ONE")
    assert not list(store.scan_iter("mail:*:job:*"))
