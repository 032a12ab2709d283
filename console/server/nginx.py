"""The Nginx site in front of the API's instances."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from console.server.configuration import SOCKETS
from console.server.release import HOME
from console.server.steps import Action, Gone, Link, Step, Text, operating, run
from console.server.systemd import is_in
from mailjob.errors import ConsoleError

FOLDER: Final = Path("/etc/nginx")
AVAILABLE: Final = FOLDER / "sites-available/async-email.conf"
ENABLED: Final = FOLDER / "sites-enabled/async-email.conf"
ENABLED_TLS: Final = FOLDER / "sites-enabled/async-email.tls.conf"
SNIPPET: Final = FOLDER / "snippets/async-email-locations.conf"
DEFAULT: Final = FOLDER / "sites-enabled/default"

LOADED: Final = HOME / "nginx-loaded"
"""Its time says when Nginx was last made to read its files: a reload shows nowhere else."""

_INSTANCES = re.compile(
    r"^    server unix:/run/async-email/api-1\.sock (.*)\n(?:    server unix:.*\n)*", re.MULTILINE
)


def site(template: str, services: int) -> str:
    """Nginx's site, with a line in its upstream for each instance."""
    wanted = "".join(
        f"    server unix:{SOCKETS}/api-{number}.sock \\1\n" for number in range(1, services + 1)
    )
    text, places = _INSTANCES.subn(wanted, template)
    if places != 1:
        raise ConsoleError("the Nginx site has no upstream that could be filled in")
    return text


def site_written(services: int) -> list[Step]:
    return [
        Text(SNIPPET, operating("nginx", "snippets/async-email-locations.conf")),
        Text(AVAILABLE, site(operating("nginx", "async-email.conf"), services)),
        Link(ENABLED, AVAILABLE),
        *([Gone(DEFAULT)] if DEFAULT.is_symlink() else []),
        Action("reload Nginx", _has_not_read_its_files, _reload),
    ]


def site_gone() -> list[Step]:
    return [
        *(Gone(path) for path in (ENABLED_TLS, ENABLED, AVAILABLE, SNIPPET)),
        Action(
            "reload Nginx",
            lambda: is_in("active", "nginx"),
            lambda: run("systemctl", "reload", "nginx"),
        ),
    ]


def _has_not_read_its_files() -> bool:
    if not is_in("active", "nginx") or not LOADED.exists():
        return True
    return LOADED.stat().st_mtime < max(AVAILABLE.stat().st_mtime, SNIPPET.stat().st_mtime)


def _reload() -> None:
    run("nginx", "-t", "-q")
    run("systemctl", "reload-or-restart", "nginx")
    LOADED.touch()
