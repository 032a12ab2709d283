"""The Kombu names: one exchange, one queue, and what a doorbell says.

Nothing outside this room knows which broker is behind them.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
from kombu import Connection, Exchange, Queue

from mailjob.job import is_job_id

EXCHANGE: Final = Exchange("async-email", type="direct", durable=True)
DOORBELLS: Final = Queue("async-email.doorbells", EXCHANGE, routing_key="due", durable=True)
ROUTING_KEY: Final = "due"
MOST_IDS: Final = 100

_SOCKET_SECONDS = 5

# Kombu verifies nothing unless told to.
_REDISS: Final = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


class Doorbell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says that these jobs are due. Losing one, or ringing twice, changes nothing but the delay."""

    ids: list[str]


class PoisonError(ValueError):
    """A message on the queue that is no doorbell."""


_decoder = msgspec.json.Decoder(Doorbell)


def encode_doorbell(ids: Sequence[str]) -> bytes:
    return msgspec.json.encode(Doorbell(list(ids)))


def decode_doorbell(body: bytes | str) -> list[str]:
    """The ids of a doorbell. Raises PoisonError for anything that ``encode_doorbell`` does not write."""
    try:
        ids = _decoder.decode(body).ids
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PoisonError(f"not a doorbell: {error}") from error
    if not 1 <= len(ids) <= MOST_IDS:
        raise PoisonError(f"a doorbell with {len(ids)} ids; 1 to {MOST_IDS} are allowed")
    for job_id in ids:
        if not is_job_id(job_id):
            raise PoisonError("a doorbell with an id that is no job id")
    return ids


def ring(producer: Any, ids: Sequence[str]) -> None:  # noqa: ANN401 - Kombu is untyped
    """Publish one doorbell. Its body stays as it is: no serializer of Kombu's reads or writes it."""
    producer.publish(
        encode_doorbell(ids),
        exchange=EXCHANGE,
        routing_key=ROUTING_KEY,
        content_type="application/json",
        content_encoding="utf-8",
        mandatory=True,
    )


def declare(channel: Any) -> int:  # noqa: ANN401 - Kombu is untyped
    """Declare the exchange, the queue and their binding, again where they were deleted.

    Gives the number of doorbells that wait.
    """
    doorbells = DOORBELLS(channel)
    doorbells.declare()
    return int(doorbells.queue_declare().message_count)


def connect(broker_url: str) -> Connection:
    """A connection of its own for one thread. Ask it for a ``channel()``: its default channel would
    retry for a while before it says that the broker is away.

    The Redis transport keeps copies of messages until they are acknowledged, and sweeps them after an
    hour; the ledger makes that needless, so it is switched off (``ack_emulation``). A message whose
    binding was deleted is put on the queue all the same (``deadletter_queue``).
    """
    parts = urlsplit(broker_url)
    if parts.scheme in {"amqp", "amqps"}:
        return Connection(
            broker_url,
            connect_timeout=_SOCKET_SECONDS,
            heartbeat=30,
            ssl=_amqps(parts.hostname) if parts.scheme == "amqps" else False,
            transport_options={"confirm_publish": True},
        )
    return Connection(
        _kombu_url(broker_url),
        ssl=_REDISS if parts.scheme == "rediss" else False,
        transport_options={
            "ack_emulation": False,
            "priority_steps": [0],
            "deadletter_queue": DOORBELLS.name,
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )


def _kombu_url(url: str) -> str:
    """Kombu's spelling of a Redis URL: unix sockets are ``redis+socket``."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    user = f"{quote(parts.username or '')}:{quote(parts.password)}@" if parts.password else ""
    return f"redis+socket://{user}{parts.path}?virtual_host={database}"


def _amqps(host: str | None) -> dict[str, object]:
    return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": host}
