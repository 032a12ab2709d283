"""The settings of an installed system: what is secret goes to credentials, the rest to its ``.env``."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dotenv import dotenv_values

from mailjob.errors import ConsoleError
from mailjob.settings import ConsumerSettings, ServiceSettings, Source, read_settings, settings_table

CONFIGURATION: Final = Path("/etc/async-email")

INSTALLED_DOTENV: Final = CONFIGURATION / ".env"

SOCKETS: Final = Path("/run/async-email")
FIRST_SOCKET: Final = SOCKETS / "api-1.sock"

REDIS_USERS: Final = ("service", "consumer", "operator")

SECRET: Final = frozenset({"SMTP_USERNAME", "SMTP_PASSWORD", "REDIS_URL", "BROKER_URL"})
FIXED: Final = frozenset({"API_BIND", "CONSUMER_METRICS_BIND", "LOG_FORMAT", "FAILPOINT"})
"""What the units say."""


@dataclass(frozen=True)
class Configuration:
    """``values`` are settings by name, secret ones too. ``ignored`` were named and cannot be used."""

    values: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    @property
    def dotenv(self) -> str:
        """The ``.env`` of the installed system, without secrets."""
        lines = [
            f"{name}={_quoted(value)}"
            for name, value in sorted(self.values.items())
            if value and name not in SECRET
        ]
        return "\n".join(["# Every setting is in the README. Secrets are in credentials/.", *lines, ""])

    def check(self) -> None:
        """Raises SettingsError with all that is wrong."""
        local = {**self.values, "REDIS_URL": ""}
        nowhere = Path("/nonexistent")
        read_settings(ServiceSettings, Source(local, nowhere))
        read_settings(ConsumerSettings, Source(local, nowhere))


def gather(installed: Path, old: Path | None, flags: Mapping[str, str]) -> Configuration:
    """What is installed, then an old system's ``.env``, then flags: the later wins."""
    known = {row[0] for row in settings_table()} - FIXED - {"REDIS_URL", "BROKER_URL"}
    values: dict[str, str] = {}
    ignored: list[str] = []
    for file in (installed / ".env", old):
        if file is not None and file.exists():
            found = {name: text or "" for name, text in dotenv_values(file, interpolate=False).items()}
            values |= {name: text for name, text in found.items() if name in known}
            ignored += [name for name in found if name not in known]
    for name in ("SMTP_USERNAME", "SMTP_PASSWORD"):
        stored = installed / "credentials" / credential(name)
        if not values.get(name) and stored.exists():
            values[name] = _secret(stored)
    values |= {name: text for name, text in flags.items() if text}
    return Configuration(values, tuple(ignored))


def is_installed() -> bool:
    return CONFIGURATION.is_dir()


def installed_source(environ: Mapping[str, str]) -> Source:
    """The settings of this server's own system, for root. Raises ConsoleError for anybody else."""
    folder = CONFIGURATION / "credentials"
    names = {
        "REDIS_URL": "operator-redis-url",
        "SMTP_USERNAME": credential("SMTP_USERNAME"),
        "SMTP_PASSWORD": credential("SMTP_PASSWORD"),
    }
    try:
        secret = {name: _secret(folder / file) for name, file in names.items()}
        return Source({"API_BIND": f"unix:{FIRST_SOCKET}", **secret, **environ}, INSTALLED_DOTENV)
    except PermissionError as error:
        raise ConsoleError(f"the settings of this server are for root to read: {error}") from error
    except FileNotFoundError as error:
        raise ConsoleError(f"this server is not wholly installed: {error}; ./run install") from error


def _secret(file: Path) -> str:
    """As the programs read it. Raises ConsoleError, OSError."""
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConsoleError(f"{file} is not UTF-8") from error


def credential(setting: str) -> str:
    return setting.lower().replace("_", "-")


def redis_password(installed: Path, user: str) -> str:
    """The one that is installed, else a new one."""
    stored = installed / "credentials" / f"{user}-redis-url"
    if stored.exists():
        return urlsplit(_secret(stored)).password or ""
    return secrets.token_hex(24)


def redis_url(user: str, password: str) -> str:
    return f"redis://{user}:{password}@127.0.0.1:6379/0"


def acl(template: str, passwords: Mapping[str, str]) -> str:
    """The template with each user's ``<user-sha256>`` replaced by the digest of its password."""
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        template = template.replace(f"<{user}-sha256>", digest)
    return template


def _quoted(value: str) -> str:
    """As python-dotenv reads it back."""
    if re.fullmatch(r"[A-Za-z0-9@%+=:,./_-]*", value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
