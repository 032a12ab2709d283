"""Faults that need root or Debian's packages: a full disk, a wrong clock."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_server import LedgerServer
from postfix import tool
from programs import wait_until
from relay import Relay, in_thread
from system_under_test import System, quick_settings


@pytest.fixture
def small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="disk-", dir="/tmp") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", name], check=True)
        yield Path(name)
        subprocess.run(["umount", name], check=True)


@pytest.mark.parametrize("redis", ["redis-server", None], ids=["redis", "valkey"])
def test_a_full_disk_keeps_every_202(tmp_path: Path, small_disk: Path, redis: str | None) -> None:
    """A server that syncs every write ends when it cannot; nothing that was promised is lost."""
    server = LedgerServer(small_disk, tool(redis) if redis else None)
    server.start()
    with in_thread(Relay()) as relay:
        system = System(tmp_path, quick_settings(server.url, relay.port), relay)
        system.start("service")
        promised = [system.accept() for _ in range(20)]
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"x" * 8_000_000)
        statuses = []
        for _ in range(200):
            answer = system.post()
            statuses.append(answer.status)
            if answer.status == 202:
                promised.append(answer.json["job_id"])
        assert set(statuses) <= {202, 503}
        assert statuses[-1] == 503
        ballast.unlink()
        server.kill()
        server.start()
        wait_until(lambda: system.post().status == 202)
        system.start("consumer")
        for job_id in promised:
            system.wait_for(job_id, "sent")
        for program in system.programs:
            assert program.stop() == 0
    server.kill()


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_clock_an_hour_off_changes_nothing(tmp_path: Path, server: LedgerServer, offset: str) -> None:
    """Leases and retries are times of the ledger's server, whatever a worker's clock says."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with in_thread(Relay({"RCPT": ["450 greylisted", "250 ok"]})) as relay:
        system = System(tmp_path, quick_settings(server.url, relay.port), relay)
        system.start("service")
        system.start("consumer", **wrong)
        system.start("consumer")
        ids = [system.accept() for _ in range(50)]
        for job_id in ids:
            job = system.wait_for(job_id, "sent")
            assert job["attempts"] <= 2
        assert len(relay.taken) == 50
        for program in system.programs:
            assert program.stop() == 0
