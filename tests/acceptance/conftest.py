"""Builds whole systems, and stops what is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from ledger_server import LedgerServer
from programs import free_port
from relay import Relay, in_thread
from system_under_test import System


class MakeSystem(Protocol):
    def __call__(self, relay: Relay, **settings: str) -> System: ...


@pytest.fixture
def make_system(server: LedgerServer, tmp_path: Path) -> Iterator[MakeSystem]:
    """Builds a system around a relay; stops what is left of it."""
    with ExitStack() as stack:
        systems: list[System] = []

        def make(relay: Relay, **settings: str) -> System:
            stack.enter_context(in_thread(relay))
            system = System(
                tmp_path,
                {
                    "REDIS_URL": server.url,
                    "API_BIND": f"127.0.0.1:{free_port()}",
                    "API_AUTH": "off",
                    "SMTP_HOST": "127.0.0.1",
                    "SMTP_PORT": str(relay.port),
                    "MAIL_FROM": "hello@example.org",
                    "LOG_FORMAT": "json",
                    "RECONCILE_SECONDS": "0.5",
                    "LEASE_SECONDS": "2",
                    "RETRY_SCHEDULE": "0.3",
                    **settings,
                },
                relay,
            )
            systems.append(system)
            return system

        yield make
        for system in systems:
            for program in system.programs:
                program.stop()


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    return make_system(Relay())
