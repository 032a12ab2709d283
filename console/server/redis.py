"""Debian's Redis as the ledger: synced, never evicting, with a user for each program."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from console.server.configuration import acl
from console.server.steps import Action, LastLine, Step, Text, operating, run
from console.server.systemd import is_in, is_older
from mailjob.errors import ConsoleError

FOLDER: Final = Path("/etc/redis")
DROP_IN: Final = FOLDER / "async-email.conf"
USERS: Final = FOLDER / "async-email.acl"
MAIN: Final = FOLDER / "redis.conf"
UNIT: Final = "redis-server"

REWRITE_SECONDS: Final = 600.0


def need_empty() -> None:
    """Raises ConsoleError where Redis holds anything, or does not say."""
    said = run("redis-cli", "INFO", "keyspace").strip()
    if said != "# Keyspace":
        raise ConsoleError(f"Redis is not empty here, or not ours to ask: {said}")


def emptied(append_only: Path) -> Step:
    """Without what an interrupted restore left, which Redis may not be able to load."""

    def empty() -> None:
        run("systemctl", "stop", UNIT)
        run("systemctl", "reset-failed", UNIT)
        shutil.rmtree(append_only, ignore_errors=True)
        run("systemctl", "start", UNIT)

    return Action("take the half-restored ledger away", append_only.exists, empty)


def filled(put_ledger_back: Callable[[], None]) -> Step:
    """The ledger as a backup has it, before any program starts."""

    def fill() -> None:
        run("systemctl", "stop", UNIT)
        put_ledger_back()
        run("systemctl", "start", UNIT)

    return Action("put the ledger back", lambda: True, fill)


def redis_prepared(passwords: Mapping[str, str]) -> list[Step]:
    users = acl(operating("redis", "users.acl"), passwords)
    return [
        Action(
            "let Redis write what it holds into its append-only file",
            lambda: _says("CONFIG", "GET", "appendonly").endswith("no"),
            _start_append_only_file,
        ),
        Text(DROP_IN, operating("redis", "async-email.conf"), 0o640, "redis", "redis"),
        Text(USERS, users, 0o640, "redis", "redis"),
        LastLine(MAIN, f"include {DROP_IN}"),
        Action(
            "restart Redis",
            lambda: is_older(UNIT, DROP_IN, USERS, MAIN),
            lambda: run("systemctl", "restart", UNIT),
        ),
    ]


def _says(*command: str) -> str:
    """Its answer where it lets anybody ask; "" where it does not run or wants a password."""
    return run("redis-cli", *command).strip() if is_in("active", UNIT) else ""


def _start_append_only_file() -> None:
    """Restarted with ``appendonly yes``, Redis loads that file alone: it must have everything first."""
    run("redis-cli", "CONFIG", "SET", "appendonly", "yes")
    until = time.monotonic() + REWRITE_SECONDS
    while _rewrites():
        if time.monotonic() > until:
            raise ConsoleError("Redis takes too long to write its append-only file; try again")
        time.sleep(0.2)


def _rewrites() -> bool:
    state = _says("INFO", "persistence")
    return "aof_rewrite_in_progress:1" in state or "aof_rewrite_scheduled:1" in state
