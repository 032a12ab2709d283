"""What makes a server: the whole of it as steps, in their order."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from console.client import Client
from console.keys import create_key, has_keys
from console.server.configuration import (
    REDIS_USERS,
    Configuration,
    acl,
    credential,
    redis_password,
    redis_url,
)
from console.server.release import HOME, SOURCE, Release, prune
from console.server.steps import (
    Action,
    Folder,
    Gone,
    LastLine,
    Link,
    Member,
    Step,
    Text,
    User,
    run,
)
from mailjob.errors import ConsoleError

USER: Final = "async-email"
CONFIGURATION: Final = Path("/etc/async-email")
UNITS: Final = Path("/etc/systemd/system")
NGINX: Final = Path("/etc/nginx")
REDIS: Final = Path("/etc/redis")
SOCKETS: Final = Path("/run/async-email")

NGINX_LOADED: Final = HOME / "nginx-loaded"
"""Its time says when Nginx was last made to read its files: a reload shows nowhere else."""

REDIS_INCLUDE: Final = f"include {REDIS}/async-email.conf"
UNIT_FILES: Final = (
    "async-email.target",
    "async-email-api@.service",
    "async-email-consumer@.service",
)
HEALTHY_SECONDS: Final = 40.0
REWRITE_SECONDS: Final = 600.0
RELEASES_KEPT: Final = 3
NEEDED: Final = {
    "systemctl": "systemd",
    "nginx": "nginx",
    "redis-server": "redis-server",
    "useradd": "passwd",
}


@dataclass(frozen=True)
class Size:
    """How many instances of each program."""

    services: int
    consumers: int

    @classmethod
    def wanted(cls, services: int | None, consumers: int | None) -> Size:
        """Where nothing is said: as many as there are, or two and one."""
        units = _installed_units()
        api = sum(unit.startswith("async-email-api@") for unit in units)
        return cls(services or api or 2, consumers or len(units) - api or 1)

    @property
    def units(self) -> list[str]:
        return [
            *(f"async-email-api@{number}.service" for number in range(1, self.services + 1)),
            *(f"async-email-consumer@{number}.service" for number in range(1, self.consumers + 1)),
        ]


def need_a_server() -> None:
    """Raises ConsoleError where something is missing that the steps rely on."""
    missing = sorted({package for tool, package in NEEDED.items() if shutil.which(tool) is None})
    if missing:
        raise ConsoleError(f"missing here; first: apt install {' '.join(missing)}")
    if not Path("/run/systemd/system").is_dir():
        raise ConsoleError("systemd does not run this machine")


def installation(configuration: Configuration, release: Release, size: Size) -> list[Step]:
    passwords = {user: redis_password(CONFIGURATION, user) for user in REDIS_USERS}
    return [
        User(USER),
        Member("www-data", USER),
        Folder(HOME),
        release,
        *_configuration(configuration, passwords),
        *_redis(passwords),
        *(Text(UNITS / name, _operating("systemd", name)) for name in UNIT_FILES),
        Action(
            "make systemd read its units again",
            _units_changed,
            lambda: run("systemctl", "daemon-reload"),
        ),
        *(
            Action(
                f"enable {unit}",
                lambda unit=unit: not _is("enabled", unit),  # type: ignore[misc]
                lambda unit=unit: run("systemctl", "enable", "--quiet", unit),  # type: ignore[misc]
            )
            for unit in ("async-email.target", *size.units)
        ),
        Rollout(release, size),
        *_nginx(size.services),
        Action(
            "stop and disable the instances that are no longer wanted",
            lambda: bool(set(_installed_units()) - set(size.units)),
            lambda: run(
                "systemctl",
                "disable",
                "--now",
                "--quiet",
                *sorted(set(_installed_units()) - set(size.units)),
            ),
        ),
        Action(
            "remove old releases",
            lambda: len(_releases()) > RELEASES_KEPT,
            lambda: prune(HOME, RELEASES_KEPT),
        ),
    ]


def removal(*, purge: bool) -> list[Step]:
    """Stops and takes away what ``installation`` put there; with ``purge`` the configuration too.

    Redis keeps its drop-in, without which it would not load the jobs again.
    """
    steps: list[Step] = [
        Action(
            "stop and disable the units",
            lambda: bool(_installed_units()),
            lambda: run(
                "systemctl", "disable", "--now", "--quiet", "async-email.target", *_installed_units()
            ),
        ),
        *(Gone(UNITS / name) for name in UNIT_FILES),
        Action(
            "make systemd read its units again",
            _units_changed,
            lambda: run("systemctl", "daemon-reload"),
        ),
        Gone(NGINX / "sites-enabled/async-email.tls.conf"),
        Gone(NGINX / "sites-enabled/async-email.conf"),
        Gone(NGINX / "sites-available/async-email.conf"),
        Gone(NGINX / "snippets/async-email-locations.conf"),
        Action(
            "reload Nginx", lambda: _is("active", "nginx"), lambda: run("systemctl", "reload", "nginx")
        ),
        Gone(HOME),
    ]
    return [*steps, Gone(CONFIGURATION)] if purge else steps


def first_key(say_key: str) -> str | None:
    """Make a key where there is none yet. Gives its text."""
    url = (CONFIGURATION / "credentials/operator-redis-url").read_text(encoding="utf-8")
    return None if has_keys(url) else create_key(url, say_key).text


class Rollout:
    """Lets the release run: instance by instance, each healthy before the next one is touched.

    Where one does not get well, the release that ran before runs again.
    """

    def __init__(self, release: Release, size: Size) -> None:
        self._release = release
        self._size = size

    def needed(self) -> str:
        link = Link(HOME / "current", self._release.path)
        stale = [unit for unit in self._size.units if self._is_stale(unit)]
        if not link.needed() and not stale:
            return ""
        return f"run release {self._release.name} as {', '.join(self._size.units)}, one after the other"

    def make(self) -> None:
        current = HOME / "current"
        before = current.readlink() if current.is_symlink() else None
        Link(current, self._release.path).make()
        touched: list[str] = []
        try:
            for unit in self._size.units:
                touched.append(unit)
                if self._is_stale(unit):
                    run("systemctl", "restart", unit)
                    wait_healthy(unit)
            run("systemctl", "start", "async-email.target")
        except ConsoleError as error:
            if before is None or before == self._release.path:
                raise
            Link(current, before).make()
            for unit in touched:
                run("systemctl", "restart", unit)
                wait_healthy(unit)
            raise ConsoleError(f"{error}; release {before.name} runs again") from error

    def _is_stale(self, unit: str) -> bool:
        """Not running, or running since before its files were written."""
        credentials = (CONFIGURATION / "credentials").glob("*")
        template = UNITS / (unit.partition("@")[0] + "@.service")
        files = [HOME / "current", CONFIGURATION / ".env", template, *credentials]
        return not _is("active", unit) or _started(unit) < max(
            int(file.lstat().st_mtime) for file in files if file.is_symlink() or file.exists()
        )


def wait_healthy(unit: str) -> None:
    """Until the instance works. Raises ConsoleError with the last of its log."""
    until = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < until:
        if _is("active", unit) and _answers(unit):
            return
        time.sleep(0.2)
    log = run("journalctl", "--no-pager", "--output=cat", "--lines=3", "--unit", unit)
    raise ConsoleError(f"{unit} does not get well; its log ends with:\n{log}")


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


def _configuration(configuration: Configuration, passwords: Mapping[str, str]) -> list[Step]:
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


def _redis(passwords: Mapping[str, str]) -> list[Step]:
    users = acl(_operating("redis", "users.acl"), passwords)
    own = [REDIS / "async-email.conf", REDIS / "async-email.acl"]
    return [
        Action(
            "let Redis write what it holds into its append-only file",
            lambda: _redis_says("CONFIG", "GET", "appendonly").endswith("no"),
            _start_append_only_file,
        ),
        Text(own[0], _operating("redis", "async-email.conf"), 0o640, "redis", "redis"),
        Text(own[1], users, 0o640, "redis", "redis"),
        LastLine(REDIS / "redis.conf", REDIS_INCLUDE),
        Action(
            "restart Redis",
            lambda: (
                not _is("active", "redis-server")
                or _started("redis-server")
                < max(int(path.stat().st_mtime) for path in (*own, REDIS / "redis.conf"))
            ),
            lambda: run("systemctl", "restart", "redis-server"),
        ),
    ]


def _redis_says(*command: str) -> str:
    """Its answer where it lets anybody ask; "" where it does not run or wants a password."""
    if not _is("active", "redis-server"):
        return ""
    return run("redis-cli", *command).strip()


def _start_append_only_file() -> None:
    """Restarted with ``appendonly yes``, Redis loads that file alone: it must have everything first."""
    run("redis-cli", "CONFIG", "SET", "appendonly", "yes")
    until = time.monotonic() + REWRITE_SECONDS
    while "aof_rewrite_in_progress:1" in (state := _redis_says("INFO", "persistence")) or (
        "aof_rewrite_scheduled:1" in state
    ):
        if time.monotonic() > until:
            raise ConsoleError("Redis takes too long to write its append-only file; try again")
        time.sleep(0.2)


def site(template: str, services: int) -> str:
    """Nginx's site, with a line in its upstream for each instance."""
    line = re.compile(
        r"^    server unix:/run/async-email/api-1\.sock (.*)\n(?:    server unix:.*\n)*", re.MULTILINE
    )
    wanted = "".join(
        f"    server unix:{SOCKETS}/api-{number}.sock \\1\n" for number in range(1, services + 1)
    )
    text, places = line.subn(wanted, template)
    if places != 1:
        raise ConsoleError("the Nginx site has no upstream that could be filled in")
    return text


def _nginx(services: int) -> list[Step]:
    available = NGINX / "sites-available/async-email.conf"
    snippet = NGINX / "snippets/async-email-locations.conf"
    default = NGINX / "sites-enabled/default"
    return [
        Text(snippet, _operating("nginx", "snippets/async-email-locations.conf")),
        Text(available, site(_operating("nginx", "async-email.conf"), services)),
        Link(NGINX / "sites-enabled/async-email.conf", available),
        *([Gone(default)] if default.is_symlink() else []),
        Action(
            "reload Nginx",
            lambda: (
                not _is("active", "nginx")
                or not NGINX_LOADED.exists()
                or NGINX_LOADED.stat().st_mtime < max(available.stat().st_mtime, snippet.stat().st_mtime)
            ),
            _reload_nginx,
        ),
    ]


def _reload_nginx() -> None:
    run("nginx", "-t", "-q")
    run("systemctl", "reload-or-restart", "nginx")
    NGINX_LOADED.touch()


def _operating(*parts: str) -> str:
    return SOURCE.joinpath("ops", *parts).read_text(encoding="utf-8")


def _is(state: str, unit: str) -> bool:
    try:
        run("systemctl", f"is-{state}", "--quiet", unit)
    except ConsoleError:
        return False
    return True


def _started(unit: str) -> int:
    """When it became active, in Unix seconds."""
    shown = run(
        "systemctl", "show", "--property=ActiveEnterTimestamp", "--value", "--timestamp=unix", unit
    )
    return int(shown.strip().removeprefix("@") or 0)


def _units_changed() -> bool:
    units = ("async-email.target", "async-email-api@1.service", "async-email-consumer@1.service")
    shown = run("systemctl", "show", "--property=NeedDaemonReload,LoadState", "--value", *units)
    return "yes" in shown or "not-found" in shown


def _installed_units() -> Sequence[str]:
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "async-email-*@*.service")
    return [line.split()[0] for line in listed.splitlines()]


def _releases() -> list[Path]:
    folder = HOME / "releases"
    return list(folder.iterdir()) if folder.is_dir() else []
