"""The values settings may have, and how each is read from text. Every parser raises ValueError."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from mailjob.failpoints import Failpoint


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


def text(value: str) -> str:
    if any(not character.isprintable() for character in value):
        raise ValueError(value)
    return value


def directory(value: str) -> Path:
    if not Path(value).is_dir():
        raise ValueError(value)
    return Path(value)


def whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value)
        if not least <= number <= most:
            raise ValueError(value)
        return number

    return parse


def seconds(least: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = float(value)
        if not least <= number <= 10**9:
            raise ValueError(value)
        return number

    return parse


def schedule(value: str) -> tuple[float, ...]:
    return tuple(seconds(0)(part.strip()) for part in value.split(","))


def url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or parts.port == 0 or not (parts.hostname or parts.path):
            raise ValueError(value)
        return value

    return parse


def bind(value: str) -> Bind:
    if value.startswith("unix:/"):
        return Bind(path=value.removeprefix("unix:"))
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise ValueError(value)
    return Bind(host=host, port=whole(0, 65535)(port))


_SENDER = re.compile(r"(?P<name>[^<>]*?)\s*<(?P<inside>[^<>]+)>|(?P<bare>[^<>]+)")
_SENDER_ADDRESS = re.compile(r"[^\s@<>()\[\]:;\\,\"]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def sender(value: str) -> Sender:
    match = _SENDER.fullmatch(text(value))
    address = (match["inside"] or match["bare"]) if match else ""
    if not (match and address.isascii() and _SENDER_ADDRESS.fullmatch(address)):
        raise ValueError(value)
    return Sender(address=address, name=(match["name"] or "").strip('" '))


def failpoint(value: str) -> tuple[Failpoint, int]:
    name, _, times = value.partition(":")
    return Failpoint(name), whole(1, 10**9)(times or "1")
