"""The job as it travels: frozen, with a versioned wire form. Pure.

A job lives in the ledger in two parts. The *body* (template and parameters) is needed to compose the
mail and is dropped when the job is finished; the *recipients* stay as long as the job is remembered.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence

import msgspec

from mailjob.errors import UnreadableJobError
from mailjob.lifecycle import RecipientStatus


class Recipient(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recipient: an ASCII address and what became of it."""

    address: str
    status: RecipientStatus = RecipientStatus.PENDING
    reply: str | None = None
    """The relay's last words about this recipient: reply code and text."""


class Body(msgspec.Struct, frozen=True, tag_field="v", tag=1):
    """Wire version 1 of what is to be said: a template's name and its parameters."""

    template: str
    parameters: Mapping[str, str]


class Job(msgspec.Struct, frozen=True):
    """A request to send one message to one or more recipients."""

    id: str
    body: Body
    recipients: tuple[Recipient, ...]


_encoder = msgspec.json.Encoder()
_body_decoder = msgspec.json.Decoder(Body)
_recipients_decoder = msgspec.json.Decoder(tuple[Recipient, ...])


def encode_body(body: Body) -> bytes:
    return _encoder.encode(body)


def decode_body(wire: bytes) -> Body:
    """Raises UnreadableJobError for another version, or bytes that are no body."""
    try:
        return _body_decoder.decode(wire)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableJobError(f"this program cannot read the job's body: {error}") from error


def encode_recipients(recipients: Sequence[Recipient]) -> bytes:
    return _encoder.encode(recipients)


def decode_recipients(wire: bytes) -> tuple[Recipient, ...]:
    """Raises UnreadableJobError for bytes that are no list of recipients."""
    try:
        return _recipients_decoder.decode(wire)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableJobError(f"this program cannot read the recipients: {error}") from error


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then 74 random bits.

    The standard library has it from Python 3.14 on.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def is_job_id(text: str) -> bool:
    """Whether ``text`` is a job id in the one spelling this system writes."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
