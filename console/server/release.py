"""Releases of this program on a server: each an environment of its own; a link says which one runs."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from console.server.steps import run
from mailjob.errors import ConsoleError

SOURCE: Final = Path(__file__).parents[2]
"""The checkout that the command runs from; it has the operating files and the hashed requirements."""

HOME: Final = Path("/opt/async-email")

PACKAGES: Final = ("mailjob", "service", "consumer", "console")


@dataclass(frozen=True)
class Release:
    """``wheels`` has every wheel that is needed; without it, packages come from the index."""

    home: Path
    wheels: Path | None = None

    @property
    def name(self) -> str:
        return f"{version('async-email')}-{self._digest()[:10]}"

    @property
    def path(self) -> Path:
        return self.home / "releases" / self.name

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


def prune(home: Path, keep: int) -> None:
    """Remove all but the newest releases and the one that runs."""
    current = (home / "current").resolve()
    releases = sorted((home / "releases").iterdir(), key=lambda path: path.stat().st_mtime)
    for old in releases[:-keep]:
        if old != current:
            shutil.rmtree(old)
