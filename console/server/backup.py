"""``async-email backup``: the configuration and a consistent copy of the ledger, as one archive.

An append-only file only grows, and what a script changed is in it between MULTI and EXEC: whatever was
read of it from its beginning is the ledger as it once was. So the files are copied as they lie there,
without stopping or asking Redis. They are linked first, so that a rewrite cannot take them away.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Final

import msgspec

from console.server.configuration import CONFIGURATION, INSTALLED_DOTENV
from console.server.systemd import MOST_INSTANCES, Size
from mailjob.errors import ConsoleError

DATA: Final = Path("/var/lib/redis")
APPEND_ONLY: Final = DATA / "appendonlydir"
MANIFEST: Final = "appendonly.aof.manifest"

RESTORING: Final = CONFIGURATION / "restoring"
"""There while a restore is not done and may be run again; says whether the ledger is in its place."""
LEDGER_IS_BACK: Final = "the ledger is in its place"

FORMAT: Final = 1
DESCRIPTION: Final = "backup.json"
CONFIGURED: Final = "configuration"
LEDGER: Final = "ledger"
END: Final = "end"
"""The last member: without it, an archive broke off."""

TRIES: Final = 20

Instances = Annotated[int, msgspec.Meta(ge=1, le=MOST_INSTANCES)]


class Description(msgspec.Struct):
    format: int
    version: str
    services: Instances = 1
    consumers: Instances = 1


# Saving


def write_backup(stream: IO[bytes]) -> None:
    """Raises ConsoleError where there is no system, or no append-only file."""
    if not INSTALLED_DOTENV.exists():
        raise ConsoleError(f"there is nothing to save: no {INSTALLED_DOTENV}")
    size = Size.wanted(None, None)
    about = Description(FORMAT, version("async-email"), size.services, size.consumers)
    with (
        linked(APPEND_ONLY) as files,
        gzip.GzipFile("", fileobj=stream, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|", dereference=True) as archive,
    ):
        _add(archive, DESCRIPTION, msgspec.json.encode(about))
        archive.add(CONFIGURATION, CONFIGURED)
        for path in files:
            with path.open("rb") as file:
                member = archive.gettarinfo(arcname=f"{LEDGER}/{path.name}", fileobj=file)
                member.type, member.linkname = tarfile.REGTYPE, ""
                member.size = os.fstat(file.fileno()).st_size  # what is appended later is left out
                archive.addfile(member, file)
        _add(archive, END, b"")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), int(time.time())
    archive.addfile(member, io.BytesIO(content))


@contextmanager
def linked(folder: Path) -> Iterator[list[Path]]:
    """Links to the files of one moment, the manifest first; they vanish afterwards.

    Where nothing can be linked, because the disk is full or cannot be written to, the files themselves.
    Raises ConsoleError.
    """
    if not (folder / MANIFEST).exists():
        raise ConsoleError(f"Redis has no append-only file in {folder}: is it this system's Redis?")
    with ExitStack() as stack:
        try:
            place = Path(stack.enter_context(temporary_folder("backup", folder.parent)))
            files = _links(folder, place)
        except OSError:
            names = [_name(line) for line in _lines_that_count(folder / MANIFEST)]
            files = [folder / MANIFEST, *(folder / name for name in names)]
        yield files


def _links(folder: Path, place: Path) -> list[Path]:
    for number in range(TRIES):
        links = place / str(number)
        links.mkdir()
        lines = _lines_that_count(folder / MANIFEST)
        names = [_name(line) for line in lines]
        try:
            for name in names:
                os.link(folder / name, links / name)
        except FileNotFoundError:  # rewritten meanwhile
            continue
        manifest = links / MANIFEST
        manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return [manifest, *(links / name for name in names)]
    raise ConsoleError(f"Redis rewrites {folder} all the time; try again")


def _lines_that_count(manifest: Path) -> list[str]:
    """``file <name> seq <number> type <b, i or h>`` and what later versions add; history (h) is leaving.

    Raises ConsoleError where that is not what is there.
    """
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines() if line]
    parts = [line.split() for line in lines]
    if not all(len(words) >= 6 and words[::2][:3] == ["file", "seq", "type"] for words in parts):  # noqa: PLR2004 - three pairs
        raise ConsoleError(f"{manifest} is not as Redis 7 writes it")
    kept = [line for line, words in zip(lines, parts, strict=True) if words[5] != "h"]
    if not kept:
        raise ConsoleError(f"{manifest} names no file")
    return kept


def _name(line: str) -> str:
    return line.split()[1]


# Restoring


@dataclass(frozen=True)
class Backup:
    """An archive, unpacked."""

    members: list[tarfile.TarInfo]
    folder: Path
    size: Size

    @property
    def configuration(self) -> Path:
        return self.folder / CONFIGURED

    def put_configuration_back(self) -> None:
        """With the modes and groups it had. The system's user must be there."""
        if not CONFIGURATION.exists():
            new = CONFIGURATION.with_name(f".{CONFIGURATION.name}.new")
            new.mkdir(mode=0o700, exist_ok=True)
            (new / RESTORING.name).touch()
            new.rename(CONFIGURATION)
        for member in self.members:
            if member.name.partition("/")[0] != CONFIGURED:
                continue
            target = CONFIGURATION / member.name.removeprefix(CONFIGURED).removeprefix("/")
            if member.isdir():
                target.mkdir(exist_ok=True)
            else:
                shutil.copyfile(self.folder / member.name, target)
            _own(target, "root", member.gname, member.mode & 0o777)

    def put_ledger_back(self) -> None:
        """As Redis's append-only file. Redis must not run. Works once."""
        ledger = self.folder / LEDGER
        for path in (ledger, *ledger.iterdir()):
            _own(path, "redis", "redis", 0o750 if path.is_dir() else 0o660)
        shutil.rmtree(APPEND_ONLY, ignore_errors=True)
        ledger.rename(APPEND_ONLY)
        os.sync()


def _own(path: Path, user: str, group: str, mode: int) -> None:
    try:
        shutil.chown(path, user, group)
    except LookupError:  # a group that this machine does not have
        shutil.chown(path, user, "root")
    path.chmod(mode)


@contextmanager
def unpacked(archive: Path) -> Iterator[Backup]:
    """Raises ConsoleError where it is no whole backup, or one that this version does not know."""
    with temporary_folder("restore", DATA) as name:
        folder = Path(name)
        try:
            with gzip.open(archive) as packed:
                with tarfile.open(fileobj=packed, mode="r|") as members:
                    unpacked_members = [_extract(members, member, folder) for member in members]
                while packed.read(1 << 20):  # to its end, where the checksum is
                    pass
            about = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
            if about.format == FORMAT:
                _need_whole(unpacked_members, folder)
        except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
            raise ConsoleError(f"{archive} is no whole backup: {error}") from error
        if about.format != FORMAT:
            raise ConsoleError(f"{archive} was made by version {about.version}: restore it with that")
        yield Backup(unpacked_members, folder, Size(about.services, about.consumers))


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """Files and folders that a backup has, and nothing else. Raises ValueError."""
    room, _, rest = member.name.partition("/")
    parts = rest.split("/") if rest else []
    known = room == CONFIGURED or (room == LEDGER and len(parts) == 1)
    known = known or (room in {DESCRIPTION, END} and not parts)
    if not known or {"", ".", ".."} & set(parts) or not (member.isreg() or member.isdir()):
        raise ValueError(f"it holds {member.name}")
    target = folder / member.name
    target.parent.mkdir(exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
        return member
    content = packed.extractfile(member)
    assert content is not None  # noqa: S101 - a regular file has one
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file)
    return member


def _need_whole(members: list[tarfile.TarInfo], folder: Path) -> None:
    """Raises ValueError, OSError, ConsoleError."""
    if not members or members[-1].name != END:
        raise ValueError("it breaks off")
    for line in _lines_that_count(folder / LEDGER / MANIFEST):
        if not (folder / LEDGER / _name(line)).is_file():
            raise ValueError(f"{_name(line)} is missing")
    if not (folder / CONFIGURED / ".env").is_file():
        raise ValueError("its settings are missing")


# Both


def temporary_folder(purpose: str, place: Path) -> tempfile.TemporaryDirectory[str]:
    """One that vanishes, and with it what a process left there that was killed."""
    for left in place.glob(f".{purpose}-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f".{purpose}-{os.getpid()}-", dir=place)
