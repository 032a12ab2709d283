"""Real neighbours for the tests: a Valkey server, and certificates for relays."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
import trustme
from ledger_server import LedgerServer
from relay import Relay, in_thread
from system_under_test import MakeSystem, System, quick_settings

from mailjob.ledger import Ledger


@pytest.fixture(scope="session")
def _server() -> Iterator[LedgerServer]:
    # Below /tmp, because the path of a unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir="/tmp"))
    server = LedgerServer(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def server(_server: LedgerServer) -> LedgerServer:
    """The server, up and empty."""
    if _server.process is None:
        _server.start()
    with _server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    return _server


@pytest.fixture
def store(server: LedgerServer) -> Iterator[redis.Redis]:
    """A plain client, to look at what the ledger wrote."""
    with server.client() as client:
        yield client


@pytest.fixture
async def ledger(server: LedgerServer) -> AsyncIterator[Ledger]:
    ledger = Ledger(server.url, reply_seconds=15.0)
    yield ledger
    await ledger.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def make_system(server: LedgerServer, tmp_path: Path) -> Iterator[MakeSystem]:
    """Builds a system around a relay; stops what is left of it."""
    with ExitStack() as stack:
        systems: list[System] = []

        def make(relay: Relay, **settings: str) -> System:
            stack.enter_context(in_thread(relay))
            everyday = quick_settings(server.url, relay.port)
            system = System(tmp_path, {**everyday, **settings}, relay)
            systems.append(system)
            return system

        yield make
        for system in systems:
            for program in system.programs:
                program.stop()


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    return make_system(Relay())
