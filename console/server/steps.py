"""Single changes of a server: each knows whether it is needed, says so, and makes it.

A step whose change is made already does nothing, so that the whole plan may run again at any time.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mailjob.errors import ConsoleError


class Step(Protocol):
    def needed(self) -> str:
        """What would be changed, in words; "" when nothing."""

    def make(self) -> None:
        """Change it. Raises ConsoleError, OSError."""


def run(*command: str | Path) -> str:
    """Run a program of the system; its output. Raises ConsoleError with its last words."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise ConsoleError(f"{' '.join(words)} failed: {said}")
    return done.stdout


SOURCE: Final = Path(__file__).parents[2]
"""The checkout that the command runs from; it has the operating files and the hashed requirements."""


def operating(*parts: str) -> str:
    """The text of one of the files below ``ops``."""
    return SOURCE.joinpath("ops", *parts).read_text(encoding="utf-8")


@dataclass(frozen=True)
class User:
    """A system user with a group of its own and nothing else."""

    name: str

    def needed(self) -> str:
        try:
            pwd.getpwnam(self.name)
        except KeyError:
            return f"make the system user {self.name}"
        return ""

    def make(self) -> None:
        nowhere = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
        run("useradd", "--system", "--user-group", *nowhere, self.name)


@dataclass(frozen=True)
class Member:
    """A user as a member of a group."""

    user: str
    group: str

    def needed(self) -> str:
        with contextlib.suppress(KeyError):  # the group may be one that a step before this makes
            if self.user in grp.getgrnam(self.group).gr_mem:
                return ""
        return f"make {self.user} a member of the group {self.group}"

    def make(self) -> None:
        run("usermod", "--append", "--groups", self.group, self.user)


@dataclass(frozen=True)
class Folder:
    path: Path
    mode: int = 0o755
    group: str = "root"

    def needed(self) -> str:
        if self.path.is_dir() and _is(self.path, self.mode, "root", self.group):
            return ""
        return f"make the folder {self.path} ({self.mode:o}, root:{self.group})"

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _own(self.path, self.mode, "root", self.group)


@dataclass(frozen=True)
class Text:
    """A file with this content."""

    path: Path
    content: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"

    def needed(self) -> str:
        try:
            same = self.path.read_text(encoding="utf-8") == self.content
        except FileNotFoundError:
            same = False
        if same and _is(self.path, self.mode, self.owner, self.group):
            return ""
        verb = "set the owner and mode of" if same else "write"
        return f"{verb} {self.path} ({self.mode:o}, {self.owner}:{self.group})"

    def make(self) -> None:
        """In one step: a reader sees the old file or the new one."""
        new = self.path.with_name(f".{self.path.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.content)
            file.flush()
            os.fsync(file.fileno())
        _own(new, self.mode, self.owner, self.group)
        new.replace(self.path)


@dataclass(frozen=True)
class Link:
    path: Path
    target: Path

    def needed(self) -> str:
        if self.path.is_symlink() and self.path.readlink() == self.target:
            return ""
        return f"link {self.path} to {self.target}"

    def make(self) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(self.target)
        new.replace(self.path)


@dataclass(frozen=True)
class Gone:
    """A file, link or folder that must not be there."""

    path: Path

    def needed(self) -> str:
        return f"remove {self.path}" if self.path.exists() or self.path.is_symlink() else ""

    def make(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink()


@dataclass(frozen=True)
class LastLine:
    """A line at the end of a file that is somebody else's."""

    path: Path
    line: str

    def needed(self) -> str:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return "" if self.line in lines else f"add to {self.path}: {self.line}"

    def make(self) -> None:
        text = self.path.read_text(encoding="utf-8").rstrip("\n")
        self.path.write_text(f"{text}\n{self.line}\n", encoding="utf-8")


@dataclass(frozen=True)
class Action:
    """Something to do where ``wanted`` says so: asked right before, so that earlier steps count."""

    words: str
    wanted: Callable[[], bool]
    act: Callable[[], object]

    def needed(self) -> str:
        return self.words if self.wanted() else ""

    def make(self) -> None:
        self.act()


def carry_out(steps: Sequence[Step], *, dry: bool, say: Callable[[str], None]) -> int:
    """Make every change that is needed, or with ``dry`` only say it. Gives how many there were.

    Raises ConsoleError.
    """
    changes = 0
    for step in steps:
        try:
            words = _needed(step, dry=dry)
            if words:
                changes += 1
                say(f"would {words}" if dry else words)
                if not dry:
                    step.make()
        except (OSError, KeyError) as error:
            raise ConsoleError(f"cannot go on: {error}") from error
    return changes


def _needed(step: Step, *, dry: bool) -> str:
    try:
        return step.needed()
    except (OSError, KeyError, ConsoleError):
        # In a dry run, what an earlier step would have made is not there.
        if dry and isinstance(step, Action):
            return step.words
        raise


def _is(path: Path, mode: int, owner: str, group: str) -> bool:
    status = path.stat()
    return (
        status.st_mode & 0o7777 == mode
        and pwd.getpwuid(status.st_uid).pw_name == owner
        and grp.getgrgid(status.st_gid).gr_name == group
    )


def _own(path: Path, mode: int, owner: str, group: str) -> None:
    os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
    path.chmod(mode)
