"""The units: how they stand, and how a release is let run, one instance after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from console.client import Client
from console.server.configuration import CONFIGURATION, SOCKETS
from console.server.release import CURRENT, Release
from console.server.steps import Action, Gone, Link, Step, Text, operating, run
from mailjob.errors import ConsoleError

UNITS: Final = Path("/etc/systemd/system")

TARGET: Final = "async-email.target"
UNIT_FILES: Final = (TARGET, "async-email-api@.service", "async-email-consumer@.service")

MOST_INSTANCES: Final = 9
"""Of one program: their metrics' ports end with their number."""

HEALTHY_SECONDS: Final = 40.0


@dataclass(frozen=True)
class Size:
    """How many instances of each program."""

    services: int
    consumers: int

    @classmethod
    def wanted(cls, services: int | None, consumers: int | None) -> Size:
        """Where nothing is said: as many as there are, or two and one."""
        units = installed_units()
        api = sum(unit.startswith("async-email-api@") for unit in units)
        return cls(services or api or 2, consumers or len(units) - api or 1)

    @property
    def units(self) -> list[str]:
        return [
            *(f"async-email-api@{number}.service" for number in range(1, self.services + 1)),
            *(f"async-email-consumer@{number}.service" for number in range(1, self.consumers + 1)),
        ]

    def surplus(self) -> list[str]:
        """Installed instances beyond these."""
        return sorted(set(installed_units()) - set(self.units))


def units_written(size: Size) -> list[Step]:
    return [
        *(Text(UNITS / name, operating("systemd", name)) for name in UNIT_FILES),
        _units_read(),
        *(
            Action(
                f"enable {unit}",
                partial(_is_off, unit),
                partial(run, "systemctl", "enable", "--quiet", unit),
            )
            for unit in (TARGET, *size.units)
        ),
    ]


def surplus_stopped(size: Size) -> Step:
    return Action(
        "stop and disable the instances that are no longer wanted",
        lambda: bool(size.surplus()),
        lambda: run("systemctl", "disable", "--now", "--quiet", *size.surplus()),
    )


def units_gone() -> list[Step]:
    return [
        Action(
            "stop and disable the units",
            lambda: bool(installed_units()),
            lambda: run("systemctl", "disable", "--now", "--quiet", TARGET, *installed_units()),
        ),
        *(Gone(UNITS / name) for name in UNIT_FILES),
        _units_read(),
    ]


class Rollout:
    """Lets the release run: instance by instance, each healthy before the next one is touched.

    Where one does not get well, the release that ran before runs again.
    """

    def __init__(self, release: Release, size: Size) -> None:
        self._release = release
        self._size = size

    def needed(self) -> str:
        link = Link(CURRENT, self._release.path)
        if not link.needed() and not any(_is_stale(unit) for unit in self._size.units):
            return ""
        return f"run release {self._release.name} as {', '.join(self._size.units)}, one after the other"

    def make(self) -> None:
        before = CURRENT.readlink() if CURRENT.is_symlink() else None
        Link(CURRENT, self._release.path).make()
        touched: list[str] = []
        try:
            for unit in self._size.units:
                touched.append(unit)
                if _is_stale(unit):
                    _restart(unit)
            run("systemctl", "start", TARGET)
        except ConsoleError as error:
            if before is None or before == self._release.path:
                raise
            Link(CURRENT, before).make()
            for unit in touched:
                _restart(unit)
            raise ConsoleError(f"{error}; release {before.name} runs again") from error


def _restart(unit: str) -> None:
    """And wait until the instance works. Raises ConsoleError with the last of its log."""
    run("systemctl", "restart", unit)
    until = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < until:
        if is_in("active", unit) and _answers(unit):
            return
        time.sleep(0.2)
    log = run("journalctl", "--no-pager", "--output=cat", "--lines=3", "--unit", unit)
    raise ConsoleError(f"{unit} does not get well; its log ends with:\n{log}")


def _is_stale(unit: str) -> bool:
    """Not running, or running since before its files were written."""
    credentials = (CONFIGURATION / "credentials").glob("*")
    template = UNITS / (unit.partition("@")[0] + "@.service")
    files = [CURRENT, CONFIGURATION / ".env", template, *credentials]
    return is_older(unit, *(file for file in files if file.is_symlink() or file.exists()))


def _answers(unit: str) -> bool:
    """Whether an instance of the API is ready; a consumer says so itself, to systemd."""
    program, _, rest = unit.partition("@")
    if not program.endswith("-api"):
        return True
    socket = SOCKETS / f"api-{rest.partition('.')[0]}.sock"
    try:
        return Client(f"unix:{socket}", None).get("/readyz").status == HTTPStatus.OK
    except ConsoleError:
        return False


def is_in(state: str, unit: str) -> bool:
    """Whether it is ``active`` or ``enabled``."""
    try:
        run("systemctl", f"is-{state}", "--quiet", unit)
    except ConsoleError:
        return False
    return True


def _is_off(unit: str) -> bool:
    return not is_in("enabled", unit)


def is_older(unit: str, *files: Path) -> bool:
    """Whether it does not run, or began to (in whole seconds) before one of these was written."""
    if not is_in("active", unit):
        return True
    shown = run(
        "systemctl", "show", "--property=ActiveEnterTimestamp", "--value", "--timestamp=unix", unit
    )
    began = int(shown.strip().removeprefix("@") or 0)
    return began < max(int(file.lstat().st_mtime) for file in files)


def installed_units() -> Sequence[str]:
    """The instances that are enabled: also where systemd does not run."""
    return sorted(link.name for link in (UNITS / f"{TARGET}.wants").glob("async-email-*@*.service"))


def _units_read() -> Step:
    return Action(
        "make systemd read its units again",
        _units_changed,
        lambda: run("systemctl", "daemon-reload"),
    )


def _units_changed() -> bool:
    units = (TARGET, "async-email-api@1.service", "async-email-consumer@1.service")
    shown = run("systemctl", "show", "--property=NeedDaemonReload,LoadState", "--value", *units)
    return "yes" in shown or "not-found" in shown
