"""Settings: read once from a mapping, typed, frozen, passed down.

A value is looked for in the environment, then as a file of that name in ``$CREDENTIALS_DIRECTORY``
(systemd's LoadCredential), then in ``.env``. An empty value counts as unset.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from mailjob.errors import SettingsError
from mailjob.failpoints import Failpoint

S = TypeVar("S", bound="LedgerSettings")


class Tls(StrEnum):
    AUTO = "auto"
    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


class AmbiguousPolicy(StrEnum):
    """What to do with a mail whose connection was lost after the final dot (RFC 1047)."""

    RESEND = "resend"
    HOLD = "hold"


class ApiAuth(StrEnum):
    KEYS = "keys"
    OFF = "off"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Bind:
    """Where to listen: a TCP host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return bool(self.path) or is_loopback(self.host)


@dataclasses.dataclass(frozen=True)
class Sender:
    """The author of every mail; the address is the envelope sender as well."""

    address: str
    name: str = ""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(value: str) -> str:
    if any(not character.isprintable() for character in value):
        raise ValueError(value)
    return value


def _directory(value: str) -> Path:
    if not Path(value).is_dir():
        raise ValueError(value)
    return Path(value)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value)
        if not least <= number <= most:
            raise ValueError(value)
        return number

    return parse


def _seconds(least: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = float(value)
        if not least <= number <= 10**9:
            raise ValueError(value)
        return number

    return parse


def _schedule(value: str) -> tuple[float, ...]:
    return tuple(_seconds(0)(part.strip()) for part in value.split(","))


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or parts.port == 0 or not (parts.hostname or parts.path):
            raise ValueError(value)
        return value

    return parse


def _bind(value: str) -> Bind:
    if value.startswith("unix:/"):
        return Bind(path=value.removeprefix("unix:"))
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise ValueError(value)
    return Bind(host=host, port=_whole(0, 65535)(port))


_SENDER = re.compile(r"(?P<name>[^<>]*?)\s*<(?P<inside>[^<>]+)>|(?P<bare>[^<>]+)")
_SENDER_ADDRESS = re.compile(r"[^\s@<>()\[\]:;\\,\"]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def _sender(value: str) -> Sender:
    match = _SENDER.fullmatch(_text(value))
    address = (match["inside"] or match["bare"]) if match else ""
    if not (match and address.isascii() and _SENDER_ADDRESS.fullmatch(address)):
        raise ValueError(value)
    return Sender(address=address, name=(match["name"] or "").strip('" '))


def _failpoint(value: str) -> tuple[Failpoint, int]:
    name, _, times = value.partition(":")
    return Failpoint(name), _whole(1, 10**9)(times or "1")


_REQUIRED = object()


def setting(
    name: str,
    parse: Callable[[str], Any],
    allowed: str,
    default: str | None = None,
    *,
    meaning: str,
    unset: Any = _REQUIRED,  # noqa: ANN401 - a value of the field's own type
    secret: bool = False,
) -> Any:  # noqa: ANN401 - like dataclasses.field, so that the field's own annotation stands
    """One setting: its name, how it is read, and what the table in the README says about it.

    ``unset`` is the value where there is neither a text nor a default; without it, that is a problem.
    """
    return dataclasses.field(
        repr=not secret,
        metadata={
            "name": name,
            "parse": parse,
            "allowed": allowed,
            "default": default,
            "meaning": meaning,
            "unset": unset,
            "secret": secret,
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    """What every program needs."""

    redis_url: str = setting(
        "REDIS_URL",
        _url("redis", "rediss", "unix"),
        "`redis://`, `rediss://` or `unix:///path?db=0`",
        "redis://127.0.0.1:6379/0",
        meaning="the ledger: Redis 6.2 or later, or Valkey",
        secret=True,
    )
    broker_url: str = setting(
        "BROKER_URL",
        _url("redis", "rediss", "unix", "amqp", "amqps"),
        "as `REDIS_URL`, or `amqp://`, `amqps://`",
        meaning="Kombu's broker for the doorbells; the same as `REDIS_URL` where unset",
        secret=True,
    )
    log_format: LogFormat | None = setting(
        "LOG_FORMAT",
        LogFormat,
        "`json`, `console`",
        meaning="form of the log on stderr; `console` on a terminal, else `json`, where unset",
        unset=None,
    )
    log_level: LogLevel = setting(
        "LOG_LEVEL",
        LogLevel,
        "`debug`, `info`, `warning`, `error`",
        "info",
        meaning="the least important lines that are logged",
    )

    job_retention: float = setting(
        "JOB_RETENTION",
        _seconds(1),
        "seconds, 1 or more",
        "604800",
        meaning="a finished job is forgotten after this time",
    )
    failpoint: tuple[Failpoint, int] | None = setting(
        "FAILPOINT",
        _failpoint,
        "`name` or `name:n`, names in `mailjob/failpoints.py`",
        meaning="for tests: die when this point is reached for the n-th time",
        unset=None,
    )

    def problems(self) -> list[str]:
        """What is wrong with values that are each allowed, taken together."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReconcileSettings(LedgerSettings):
    reconcile_seconds: float = setting(
        "RECONCILE_SECONDS",
        _seconds(0.05),
        "seconds, 0.05 or more",
        "5",
        meaning="how often due jobs are looked for; a doorbell has twice this time to be heard",
    )

    @property
    def grace_seconds(self) -> float:
        """How long a queued job waits for its doorbell before the reconciler takes it."""
        return 2 * self.reconcile_seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings(_ReconcileSettings):
    api_bind: Bind = setting(
        "API_BIND",
        _bind,
        "`host:port` or `unix:/path`",
        "127.0.0.1:8000",
        meaning="where the API listens",
    )
    api_auth: ApiAuth = setting(
        "API_AUTH",
        ApiAuth,
        "`keys`, `off` (loopback and unix sockets only)",
        "keys",
        meaning="whether requests need `Authorization: Bearer <key>`",
    )

    max_pending: int = setting(
        "MAX_PENDING",
        _whole(1, 10**9),
        "1 to 1000000000",
        "1000000",
        meaning="most unfinished jobs; beyond that `POST /start-job` is answered 503",
    )

    def problems(self) -> list[str]:
        if self.api_auth is ApiAuth.OFF and not self.api_bind.local:
            bind = f"API_BIND={self.api_bind}"
            return [f"API_AUTH=off is refused with {bind}: only loopback and unix sockets are allowed"]
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsumerSettings(_ReconcileSettings):
    smtp_host: str = setting(
        "SMTP_HOST", _text, "a host name or address", meaning="the relay that takes the mail"
    )
    smtp_port: int = setting(
        "SMTP_PORT", _whole(1, 65535), "1 to 65535", "587", meaning="the relay's port"
    )
    smtp_username: str = setting(
        "SMTP_USERNAME", _text, "text", meaning="for AUTH; no AUTH where unset", unset=""
    )
    smtp_password: str = setting(
        "SMTP_PASSWORD", _text, "text", meaning="for AUTH", unset="", secret=True
    )
    smtp_tls: Tls = setting(
        "SMTP_TLS",
        Tls,
        "`auto`, `starttls`, `tls`, `none`",
        "auto",
        meaning="`auto`: port 465 `tls`; 587 `starttls` required; others STARTTLS if offered",
    )
    smtp_connections: int = setting(
        "SMTP_CONNECTIONS",
        _whole(1, 10_000),
        "1 to 10000",
        "20",
        meaning="most open connections of one consumer to the relay",
    )
    mail_from: Sender = setting(
        "MAIL_FROM",
        _sender,
        "`address` or `Name <address>`",
        meaning="the sender; `SMTP_USERNAME` where unset and that is an address",
    )
    template_dir: Path | None = setting(
        "TEMPLATE_DIR",
        _directory,
        "an existing directory",
        meaning="templates that replace the built-in ones of the same name",
        unset=None,
    )
    consumer_concurrency: int = setting(
        "CONSUMER_CONCURRENCY",
        _whole(1, 10_000),
        "1 to 10000",
        "100",
        meaning="mails one consumer has in flight",
    )
    consumer_metrics_bind: Bind = setting(
        "CONSUMER_METRICS_BIND",
        _bind,
        "`host:port`",
        "127.0.0.1:9102",
        meaning="where the consumer shows its metrics",
    )
    retry_schedule: tuple[float, ...] = setting(
        "RETRY_SCHEDULE",
        _schedule,
        "seconds, comma-separated",
        "60,300,900,1800,3600,7200",
        meaning="waits between attempts, the last one repeated, each varied by up to 10 %",
    )
    job_lifetime: float = setting(
        "JOB_LIFETIME",
        _seconds(1),
        "seconds, 1 or more",
        "172800",
        meaning="a job that could not be sent for this long fails",
    )
    lease_seconds: float = setting(
        "LEASE_SECONDS",
        _seconds(0.5),
        "seconds, 0.5 or more",
        "15",
        meaning="a consumer that shows no sign of life for this long loses its jobs to others",
    )
    drain_seconds: float = setting(
        "DRAIN_SECONDS",
        _seconds(0),
        "seconds, 0 or more",
        "30",
        meaning="how long a stopping consumer waits for replies to mail it has handed over",
    )
    ambiguous_policy: AmbiguousPolicy = setting(
        "AMBIGUOUS_POLICY",
        AmbiguousPolicy,
        "`resend`, `hold`",
        "resend",
        meaning="what to do when the connection is lost after the final dot",
    )

    def problems(self) -> list[str]:
        if self.consumer_metrics_bind.path:
            return ["CONSUMER_METRICS_BIND: only host:port is allowed, not a unix socket"]
        return []


class Source:
    """Where settings come from, in their order."""

    def __init__(self, environ: Mapping[str, str], dotenv: Path) -> None:
        self._environ = environ
        self._dotenv = dotenv_values(dotenv, interpolate=False) if dotenv.is_file() else {}
        credentials = environ.get("CREDENTIALS_DIRECTORY")
        self._credentials = Path(credentials) if credentials else None

    def get(self, name: str) -> str:
        """The text of a setting, "" where no source has one."""
        if self._environ.get(name, "").strip():
            return self._environ[name]
        if self._credentials and (self._credentials / name).is_file():
            value = (self._credentials / name).read_text(encoding="utf-8").rstrip("\r\n")
            if value.strip():
                return value
        value = self._dotenv.get(name) or ""
        return value if value.strip() else ""


def read_settings(kind: type[S], source: Source) -> S:
    """Read every setting of ``kind``. Raises SettingsError with all that is wrong."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(kind):
        row = field.metadata
        text = source.get(row["name"]) or _stand_in(row["name"], source) or row["default"]
        if text:
            try:
                values[field.name] = row["parse"](text if row["secret"] else text.strip())
            except ValueError:
                shown = "(not shown)" if row["secret"] else repr(text)
                problems.append(f"{row['name']}={shown} is not allowed; allowed: {row['allowed']}")
        elif row["unset"] is _REQUIRED:
            problems.append(f"{row['name']} is not set; allowed: {row['allowed']}")
        else:
            values[field.name] = row["unset"]
    if not problems:
        settings = kind(**values)
        problems = settings.problems()
    if problems:
        raise SettingsError(problems)
    return settings


def _stand_in(name: str, source: Source) -> str | None:
    """The text another setting lends to an unset one."""
    if name == "BROKER_URL":
        redis_url = LedgerSettings.__dataclass_fields__["redis_url"].metadata["default"]
        return source.get("REDIS_URL") or str(redis_url)
    if name == "MAIL_FROM" and "@" in source.get("SMTP_USERNAME"):
        return source.get("SMTP_USERNAME")
    return None


def settings_table() -> list[tuple[str, str, str, str]]:
    """Rows for the README: name, default, allowed, meaning; each setting once."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for kind in (LedgerSettings, ServiceSettings, ConsumerSettings):
        for field in dataclasses.fields(kind):
            row = field.metadata
            shown = "unset"
            if row["default"]:
                shown = f"`{row['default']}`"
            elif row["unset"] is _REQUIRED and row["name"] != "BROKER_URL":
                shown = "required"
            rows[row["name"]] = (row["name"], shown, row["allowed"], row["meaning"])
    return list(rows.values())
