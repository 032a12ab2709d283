"""What makes a server: the whole of it as steps, in their order."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from console.keys import create_key, has_keys
from console.server.configuration import (
    CONFIGURATION,
    REDIS_USERS,
    Configuration,
    credential,
    installed_source,
    redis_password,
    redis_url,
)
from console.server.nginx import site_gone, site_written
from console.server.redis import redis_prepared
from console.server.release import CURRENT, HOME, Release, old_releases_removed
from console.server.steps import Folder, Gone, Link, Member, Step, Text, User
from console.server.systemd import Rollout, Size, surplus_stopped, units_gone, units_written
from mailjob.errors import ConsoleError

USER: Final = "async-email"

COMMAND: Final = Path("/usr/local/bin/async-email")

NEEDED: Final = {
    "systemctl": "systemd",
    "nginx": "nginx",
    "redis-server": "redis-server",
    "useradd": "passwd",
}


def need_a_server() -> None:
    """Raises ConsoleError where something is missing that the steps rely on."""
    missing = sorted({package for tool, package in NEEDED.items() if shutil.which(tool) is None})
    if missing:
        raise ConsoleError(f"missing here; first: apt install {' '.join(missing)}")
    if not Path("/run/systemd/system").is_dir():
        raise ConsoleError("systemd does not run this machine")


def installation(
    configuration: Configuration, release: Release, size: Size, ledger: Sequence[Step] = ()
) -> list[Step]:
    """``ledger`` fills it before any program starts."""
    passwords = {user: redis_password(CONFIGURATION, user) for user in REDIS_USERS}
    return [
        User(USER),
        Member("www-data", USER),
        Folder(HOME),
        release,
        *_configuration_written(configuration, passwords),
        *redis_prepared(passwords),
        *ledger,
        *units_written(size),
        Rollout(release, size),
        Link(COMMAND, CURRENT / "bin/async-email"),
        *site_written(size.services),
        surplus_stopped(size),
        old_releases_removed(),
    ]


def removal(*, purge: bool) -> list[Step]:
    """Stops and takes away what ``installation`` put there; with ``purge`` the configuration too.

    Redis keeps its drop-in, without which it would not load the jobs again.
    """
    steps = [*units_gone(), *site_gone(), Gone(COMMAND), Gone(HOME)]
    return [*steps, Gone(CONFIGURATION)] if purge else steps


def first_key(name: str) -> str | None:
    """Make a key where there is none yet. Gives its text."""
    url = installed_source({}).get("REDIS_URL")
    return None if has_keys(url) else create_key(url, name).text


def _configuration_written(configuration: Configuration, passwords: Mapping[str, str]) -> list[Step]:
    folder = CONFIGURATION / "credentials"
    secrets = {f"{user}-redis-url": redis_url(user, password) for user, password in passwords.items()}
    for name in ("SMTP_USERNAME", "SMTP_PASSWORD"):
        secrets[credential(name)] = configuration.values.get(name, "")
    return [
        Folder(CONFIGURATION, 0o750, USER),
        Folder(folder, 0o700),
        Text(CONFIGURATION / ".env", configuration.dotenv, 0o640, "root", USER),
        *(Text(folder / name, text, 0o600) for name, text in secrets.items()),
    ]
