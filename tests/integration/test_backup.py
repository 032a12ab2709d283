"""The ledger's files, copied while jobs come in and Redis rewrites them."""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ledger_server import LedgerServer

from console.server import backup
from console.server.backup import linked, unpacked
from console.server.systemd import Size
from mailjob.errors import ConsoleError
from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.ledger import Ledger

COPIES = 12


@contextmanager
def started(folder: Path) -> Iterator[LedgerServer]:
    server = LedgerServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def accept_for_ever(ledger: Ledger, accepted: list[str]) -> None:
    """Through the whole life of a job, so that there are scripts that change several keys."""
    while True:
        job = Job(new_job_id(), Body("welcome", {"name": "Ada"}), (Recipient("ada@example.org"),))
        await ledger.accept(job, grace_ms=0)
        accepted.append(job.id)
        await ledger.claim([job.id], consumer="c", lease_ms=60_000)


def copy(server: LedgerServer, target: Path) -> None:
    with linked(server.folder / "appendonlydir") as files:
        (target / "appendonlydir").mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, target / "appendonlydir" / file.name)


async def test_a_copy_is_the_ledger_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    with started(tmp_path / "live") as server, server.client() as store:
        ledger = Ledger(server.url, reply_seconds=10)
        accepted: list[str] = []
        busy = [asyncio.create_task(accept_for_ever(ledger, accepted)) for _ in range(8)]
        known: list[set[str]] = []
        try:
            for number in range(COPIES):
                wanted = len(accepted) + 40
                while len(accepted) < wanted:
                    await asyncio.sleep(0.005)
                if not store.info("persistence")["aof_rewrite_in_progress"]:
                    store.bgrewriteaof()
                known.append(set(accepted))
                await asyncio.to_thread(copy, server, tmp_path / f"copy{number}")
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            await ledger.close()
    assert not list((tmp_path / "live").glob(".backup-*"))
    for number, before in enumerate(known):
        with started(tmp_path / f"copy{number}") as restored, restored.client() as store:
            jobs = {key.rpartition(":")[2] for key in store.scan_iter("mail:{0}:job:*")}
            assert before <= jobs
            assert set(store.zrange("mail:{0}:due", 0, -1)) == jobs
            counts = store.hgetall("mail:{0}:counts")
            assert sum(map(int, counts.values())) == len(jobs)


def test_files_that_are_rewritten_meanwhile_are_looked_for_again(tmp_path: Path) -> None:
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    manifest = folder / backup.MANIFEST
    manifest.write_text("file gone.rdb seq 1 type b\nfile a.aof seq 1 type i\n")
    (folder / "a.aof").write_text("a")
    with pytest.raises(ConsoleError, match="rewrites"), linked(folder):
        pass
    assert not list(tmp_path.glob(".backup-*"))
    (folder / "base.rdb").write_text("b")
    manifest.write_text(
        "file old.aof seq 1 type h\nfile base.rdb seq 2 type b\nfile a.aof seq 2 type i\n"
    )
    with linked(folder) as files:
        assert [file.name for file in files] == [backup.MANIFEST, "base.rdb", "a.aof"]
        assert "old.aof" not in files[0].read_text()


def test_without_an_append_only_file_there_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="no append-only file"), linked(tmp_path):
        pass


def test_what_was_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, ledger = tmp_path / "etc", tmp_path / "appendonlydir"
    (configuration / "credentials").mkdir(parents=True)
    ledger.mkdir()
    files = {
        configuration / ".env": b"SMTP_HOST=localhost\n",
        configuration / "credentials/smtp-password": b"hunter2",
        ledger / backup.MANIFEST: b"file a.aof seq 1 type i\n",
        ledger / "a.aof": bytes(range(256)) * 1000,
    }
    for path, content in files.items():
        path.write_bytes(content)
    monkeypatch.setattr(backup, "CONFIGURATION", configuration)
    monkeypatch.setattr(backup, "INSTALLED_DOTENV", configuration / ".env")
    monkeypatch.setattr(backup, "APPEND_ONLY", ledger)
    monkeypatch.setattr(backup, "DATA", tmp_path)
    monkeypatch.setattr(Size, "wanted", lambda *_: Size(3, 2))
    with (tmp_path / "backup").open("wb") as stream:
        backup.write_backup(stream)
    with unpacked(tmp_path / "backup") as saved:
        assert saved.size == Size(3, 2)
        for path, content in files.items():
            place = saved.configuration if configuration in path.parents else saved.folder / "ledger"
            root = configuration if configuration in path.parents else ledger
            assert (place / path.relative_to(root)).read_bytes() == content


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("backup.json", b'{"format": 2, "version": "9.0"}')], "made by version 9.0"),
        ([("backup.json", b"{}"), ("/etc/passwd", b"")], "holds /etc/passwd"),
        ([("backup.json", b"{}"), ("configuration/../x", b"")], "holds configuration/../x"),
        ([("ledger/a.aof", b"")], "no whole backup"),
    ],
)
def test_what_is_no_backup_is_refused(
    members: list[tuple[str, bytes]], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "DATA", tmp_path)
    file = archive(tmp_path / "backup", *members)
    with pytest.raises(ConsoleError, match=words), unpacked(file):
        pass


def test_half_a_backup_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "DATA", tmp_path)
    file = archive(tmp_path / "backup", ("backup.json", b"{}"), ("ledger/a.aof", bytes(100_000)))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConsoleError, match="no whole backup"), unpacked(file):
        pass
