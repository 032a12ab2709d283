"""Releases of this program on a server: each an environment of its own; a link says which one runs."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final

from console.server.steps import SOURCE, Action, Step, run
from mailjob.errors import ConsoleError

HOME: Final = Path("/opt/async-email")
RELEASES: Final = HOME / "releases"
CURRENT: Final = HOME / "current"
"""The link to the release that runs."""

KEPT: Final = 3

PACKAGES: Final = ("mailjob", "service", "consumer", "console")


@dataclass(frozen=True)
class Release:
    """``wheels`` has every wheel that is needed; without it, packages come from the index."""

    wheels: Path | None = None

    @cached_property
    def name(self) -> str:
        return f"{version('async-email')}-{self._digest()[:10]}"

    @property
    def path(self) -> Path:
        return RELEASES / self.name

    def needed(self) -> str:
        if (self.path / "complete").exists():
            return ""
        return f"install release {self.name} into {self.path}"

    def make(self) -> None:
        """An environment cannot be moved: it is built in its place, and marked when it is complete."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        base = Path(sys.base_prefix) / "bin/python3"
        run(base, "-m", "venv", self.path)
        pip = (
            self.path / "bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        )
        if self.wheels is not None:
            run(*pip, "--no-index", "--find-links", self.wheels, "async-email[fast]")
        else:
            run(*pip, "--require-hashes", "-r", SOURCE / "requirements/run.txt")
            run(*pip, "--no-index", "--no-deps", "--no-build-isolation", SOURCE)
        run(self.path / "bin/python", "-m", "compileall", "-q", self.path / "lib")
        (self.path / "complete").touch()

    def _digest(self) -> str:
        """Of what would be installed."""
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        if self.wheels is not None:
            files = sorted(self.wheels.glob("*.whl"))
            if not any(file.name.startswith("async_email-") for file in files):
                raise ConsoleError(f"{self.wheels} has no wheel of async-email; ./run wheels makes them")
            return files
        requirements = SOURCE / "requirements/run.txt"
        if not requirements.exists():
            raise ConsoleError("run this from a checkout, or give --wheels")
        sources = [file for name in PACKAGES for file in (SOURCE / name).rglob("*") if file.is_file()]
        return [requirements, *sorted(file for file in sources if "__pycache__" not in file.parts)]


def old_releases_removed() -> Step:
    """All but the newest ones and the one that runs."""
    return Action("remove old releases", lambda: bool(_old()), lambda: list(map(shutil.rmtree, _old())))


def _old() -> list[Path]:
    releases = list(RELEASES.iterdir()) if RELEASES.is_dir() else []
    oldest_first = sorted(releases, key=lambda path: path.stat().st_mtime)
    return [release for release in oldest_first[:-KEPT] if release != CURRENT.resolve()]
