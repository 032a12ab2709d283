"""The ledger's files, copied while jobs come in and Redis rewrites them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
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


def ledger_files(folder: Path, manifest: str) -> Path:
    """A folder with this manifest and two files."""
    folder.mkdir()
    (folder / backup.MANIFEST).write_text(manifest)
    for name in ("base.rdb", "a.aof"):
        (folder / name).write_bytes(name.encode() * 20_000)
    return folder


def test_files_that_are_rewritten_meanwhile_are_looked_for_again(tmp_path: Path) -> None:
    folder = ledger_files(tmp_path / "appendonlydir", "file gone.rdb seq 1 type b\n")
    with pytest.raises(ConsoleError, match="rewrites"), linked(folder):
        pass
    assert not list(tmp_path.glob(".backup-*"))


def test_history_is_left_out_and_what_later_versions_say_is_kept(tmp_path: Path) -> None:
    lines = [
        "file old.aof seq 1 type h",
        "file base.rdb seq 2 type b",
        "file a.aof seq 2 type i startoffset 0",
    ]
    folder = ledger_files(tmp_path / "appendonlydir", "\n".join([*lines, ""]))
    with linked(folder) as files:
        assert [file.name for file in files] == [backup.MANIFEST, "base.rdb", "a.aof"]
        assert files[0].read_text().splitlines() == lines[1:]


@pytest.mark.parametrize("manifest", ["", "version 2\n", "file a.aof seq 1 type h\n"])
def test_a_manifest_that_is_not_understood_is_no_empty_backup(manifest: str, tmp_path: Path) -> None:
    folder = ledger_files(tmp_path / "appendonlydir", manifest)
    with pytest.raises(ConsoleError, match=backup.MANIFEST), linked(folder):
        pass


def test_without_an_append_only_file_there_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="no append-only file"), linked(tmp_path):
        pass


def test_where_nothing_can_be_linked_the_files_themselves_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger_files(tmp_path / "appendonlydir", "file a.aof seq 1 type i\n")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with linked(folder) as files:
        assert files == [folder / backup.MANIFEST, folder / "a.aof"]


def test_what_a_killed_backup_left_is_swept(tmp_path: Path) -> None:
    folder = ledger_files(tmp_path / "appendonlydir", "file a.aof seq 1 type i\n")
    killed, living = tmp_path / ".backup-999999999-x", tmp_path / f".backup-{os.getpid()}-x"
    killed.mkdir()
    living.mkdir()
    with linked(folder):
        assert not killed.exists()
        assert living.exists()


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backup of a small server."""
    configuration = tmp_path / "etc"
    (configuration / "credentials").mkdir(parents=True)
    (configuration / ".env").write_text("SMTP_HOST=localhost\n")
    (configuration / "credentials/smtp-password").write_text("hunter2")
    ledger = ledger_files(
        tmp_path / "appendonlydir", "file base.rdb seq 1 type b\nfile a.aof seq 1 type i\n"
    )
    monkeypatch.setattr(backup, "CONFIGURATION", configuration)
    monkeypatch.setattr(backup, "INSTALLED_DOTENV", configuration / ".env")
    monkeypatch.setattr(backup, "APPEND_ONLY", ledger)
    monkeypatch.setattr(backup, "DATA", tmp_path)
    monkeypatch.setattr(Size, "wanted", lambda *_: Size(3, 2))
    with (tmp_path / "backup").open("wb") as stream:
        backup.write_backup(stream)
    return tmp_path / "backup"


def test_what_was_saved_comes_back(saved: Path) -> None:
    with unpacked(saved) as found:
        assert found.size == Size(3, 2)
        configuration = saved.parent / "etc"
        for path in (configuration / ".env", configuration / "credentials/smtp-password"):
            place = found.configuration / path.relative_to(configuration)
            assert place.read_bytes() == path.read_bytes()
        for path in backup.APPEND_ONLY.iterdir():
            assert (found.folder / "ledger" / path.name).read_bytes() == path.read_bytes()


def test_every_damage_is_noticed(saved: Path) -> None:
    """But for bits of the compression that say nothing."""
    whole = saved.read_bytes()
    refused = 0
    for number in range(60):
        damaged = bytearray(whole)
        damaged[10 + (len(whole) - 10) * number // 60] ^= 1 << number % 8
        saved.write_bytes(damaged)
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(damaged) == gzip.decompress(whole):
                continue
        refused += 1
        with pytest.raises(ConsoleError), unpacked(saved):
            pass
    assert refused > 20


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_half_a_backup_is_refused(part: float, saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ConsoleError, match="no whole backup"), unpacked(saved):
        pass


def test_a_backup_that_failed_is_refused(saved: Path) -> None:
    """Its archive has an end, for whoever looks at it with tar."""
    (saved.parent / "etc/aaa").symlink_to("/nowhere")
    with pytest.raises(OSError, match="aaa"), saved.open("wb") as stream:
        backup.write_backup(stream)
    with pytest.raises(ConsoleError, match="no whole backup"), unpacked(saved):
        pass


GOOD = [
    ("backup.json", b'{"format": 1, "version": "0.1.0"}'),
    ("configuration/.env", b""),
    ("ledger/appendonly.aof.manifest", b"file a.aof seq 1 type i\n"),
    ("ledger/a.aof", b""),
    ("end", b""),
]


def archive(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """Where the content is text, a symbolic link to it."""
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                packed.addfile(member)
            else:
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return path


def without(name: str) -> list[tuple[str, bytes]]:
    return [member for member in GOOD if member[0] != name]


def test_the_archive_of_the_next_test_would_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "DATA", tmp_path)
    with unpacked(archive(tmp_path / "backup", *GOOD)) as found:
        assert found.size == Size(1, 1)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("backup.json", b'{"format": 2, "version": "9.0"}')], "made by version 9.0"),
        ([*GOOD, ("/etc/passwd", b"")], "holds /etc/passwd"),
        ([*GOOD, ("configuration/../x", b"")], "holds configuration/../x"),
        ([*GOOD, ("configuration/x", "/etc/passwd")], "holds configuration/x"),
        ([*GOOD, ("ledger/x/y", b"")], "holds ledger/x/y"),
        ([*GOOD, ("ledger/a.aof", b"again")], "exists"),
        (without("backup.json"), "backup.json"),
        (without("configuration/.env"), "settings"),
        (without("ledger/appendonly.aof.manifest"), "manifest"),
        (without("ledger/a.aof"), "a.aof is missing"),
        (without("end"), "breaks off"),
        ([("backup.json", b'{"format": 1, "version": "0", "services": 100}'), *GOOD[1:]], "services"),
        ([("backup.json", b"[]"), *GOOD[1:]], "no whole backup"),
    ],
)
def test_what_is_no_backup_is_refused(
    members: list[tuple[str, bytes | str]],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backup, "DATA", tmp_path)
    with (
        pytest.raises(ConsoleError, match=words),
        unpacked(archive(tmp_path / "backup", *members)),
    ):
        pass
