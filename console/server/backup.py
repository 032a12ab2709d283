"""``async-email backup``: the configuration and a consistent copy of the ledger, as one archive.

An append-only file only grows, and what a script changed is in it between MULTI and EXEC: whatever was
read of it from its beginning is the ledger as it once was. So the files are copied as they lie there,
without stopping or asking Redis. They are linked first, so that a rewrite cannot take them away.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Final

from console.server.configuration import CONFIGURATION, INSTALLED_DOTENV
from console.server.systemd import Size
from mailjob.errors import ConsoleError

DATA: Final = Path("/var/lib/redis")
APPEND_ONLY: Final = DATA / "appendonlydir"
MANIFEST: Final = "appendonly.aof.manifest"

RESTORING: Final = CONFIGURATION / "restoring"
"""There until the ledger is in its place: so long, a restore that was interrupted may be run again."""

FORMAT: Final = 1
DESCRIPTION: Final = "backup.json"
CONFIGURED: Final = "configuration"
LEDGER: Final = "ledger"

TRIES: Final = 20

_NAMED = re.compile(r"^file (\S+) seq \d+ type [bi]$", re.MULTILINE)
"""A line of the manifest for a file that counts; history (type h) is on its way out."""

_MEMBER = re.compile(rf"{DESCRIPTION}|{LEDGER}/[\w.-]+|{CONFIGURED}(/[^/]+)*")


def write_backup(stream: IO[bytes]) -> None:
    """Raises ConsoleError where there is no system, or no append-only file."""
    if not INSTALLED_DOTENV.exists():
        raise ConsoleError(f"there is nothing to save: no {INSTALLED_DOTENV}")
    size = Size.wanted(None, None)
    about = {
        "format": FORMAT,
        "version": version("async-email"),
        "services": size.services,
        "consumers": size.consumers,
    }
    with (
        linked(APPEND_ONLY) as files,
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|", dereference=True) as archive,
    ):
        description = tarfile.TarInfo(DESCRIPTION)
        content = json.dumps(about).encode()
        description.size, description.mtime = len(content), int(time.time())
        archive.addfile(description, io.BytesIO(content))
        archive.add(CONFIGURATION, CONFIGURED)
        for path in files:
            with path.open("rb") as file:
                member = archive.gettarinfo(arcname=f"{LEDGER}/{path.name}", fileobj=file)
                member.type, member.linkname = tarfile.REGTYPE, ""
                member.size = os.fstat(file.fileno()).st_size  # what is appended later is left out
                archive.addfile(member, file)


@contextmanager
def linked(folder: Path) -> Iterator[list[Path]]:
    """Links to the files of one moment, the manifest first; they vanish afterwards.

    Raises ConsoleError.
    """
    if not (folder / MANIFEST).exists():
        raise ConsoleError(f"Redis has no append-only file in {folder}: is it this system's Redis?")
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=folder.parent) as name:
        for number in range(TRIES):
            links = Path(name) / str(number)
            links.mkdir()
            lines = list(_NAMED.finditer((folder / MANIFEST).read_text(encoding="utf-8")))
            try:
                for line in lines:
                    os.link(folder / line[1], links / line[1])
            except FileNotFoundError:  # rewritten meanwhile
                continue
            manifest = links / MANIFEST
            manifest.write_text("".join(f"{line[0]}\n" for line in lines), encoding="utf-8")
            yield [manifest, *(links / line[1] for line in lines)]
            return
    raise ConsoleError(f"Redis rewrites {folder} all the time; try again")


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
        CONFIGURATION.mkdir(mode=0o700, exist_ok=True)
        RESTORING.touch()
        for member in self.members:
            if member.name.partition("/")[0] != CONFIGURED:
                continue
            target = CONFIGURATION / member.name.removeprefix(CONFIGURED).removeprefix("/")
            if member.isdir():
                target.mkdir(exist_ok=True)
            else:
                shutil.copyfile(self.folder / member.name, target)
            shutil.chown(target, "root", member.gname)
            target.chmod(member.mode)

    def put_ledger_back(self) -> None:
        """As Redis's append-only file. Redis must not run. Works once."""
        shutil.rmtree(APPEND_ONLY, ignore_errors=True)
        (self.folder / LEDGER).rename(APPEND_ONLY)
        for path in (APPEND_ONLY, *APPEND_ONLY.iterdir()):
            shutil.chown(path, "redis", "redis")
            path.chmod(0o750 if path.is_dir() else 0o640)


@contextmanager
def unpacked(archive: Path) -> Iterator[Backup]:
    """Raises ConsoleError where it is no backup, or one that this version does not know."""
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=DATA) as name:
        folder = Path(name)
        try:
            with tarfile.open(archive, "r:gz") as packed:
                members = [_extract(packed, member, folder) for member in packed]
            about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise ConsoleError(f"{archive} is no whole backup: {error}") from error
        if about.get("format") != FORMAT:
            made_by = about.get("version")
            raise ConsoleError(f"{archive} was made by version {made_by}: restore it with that")
        yield Backup(members, folder, Size(about["services"], about["consumers"]))


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """Files and folders that a backup has, and nothing else. Raises ValueError."""
    target = folder / member.name
    if not _MEMBER.fullmatch(member.name) or ".." in Path(member.name).parts:
        raise ValueError(f"it holds {member.name}")
    target.parent.mkdir(exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
        return member
    content = packed.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name} is no file")
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    return member
