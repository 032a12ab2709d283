"""Servers nobody here wrote: Debian's Redis as ledger and broker, Debian's Postfix as relay."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from ledger_server import LedgerServer
from postfix import Postfix, run_postfix, tool


@pytest.fixture
def server() -> Iterator[LedgerServer]:
    """Debian's Redis, in the place of Valkey."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as name:
        redis_server = LedgerServer(Path(name), tool("redis-server"))
        redis_server.start()
        yield redis_server
        redis_server.kill()


@pytest.fixture
def postfix(authority: trustme.CA) -> Iterator[Postfix]:
    with run_postfix(authority) as instance:
        yield instance
