"""What the ledger's steps take and give back: frozen records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mailjob.job import Job, Recipient
from mailjob.lifecycle import Status


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's promise that two requests with this key are one.

    ``key`` is a digest of the client's key and of who it is; ``fingerprint`` one of what was asked.
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Accepted:
    job_id: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send a job once. ``fence`` proves it to the ledger; ``attempt`` counts from 1."""

    job: Job
    fence: int
    attempt: int
    created_ms: int
    age_ms: int
    """Server time from the accept of the job to this claim."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job was not claimed: its status, or ``unknown``."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A claimed job that this program cannot read; another version may."""

    job_id: str
    fence: int
    attempt: int
    age_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Completion:
    """How an attempt ended."""

    status: Status
    recipients: tuple[Recipient, ...] | None
    """None leaves them as they are."""
    delay_ms: int | None
    """Until the next attempt; None when the job is finished."""
    event: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Swept:
    """What the reconciler found. All but ``unknown`` are ids of jobs that the ledger holds."""

    ready: tuple[str, ...]
    expired: tuple[str, ...]
    ambiguous: tuple[str, ...]
    unknown: tuple[str, ...]
    next_due_ms: int | None


@dataclass(frozen=True, slots=True)
class Event:
    at_ms: int
    name: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Record:
    """One job as the ledger holds it. Times are Unix milliseconds of the server's clock."""

    job_id: str
    status: Status
    created_ms: int
    updated_ms: int
    attempts: int
    recipients: tuple[Recipient, ...]
    due_ms: int | None
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Census:
    counts: Mapping[Status, int]
    """Jobs by status; finished ones are counted since the ledger began."""
    oldest_due_age_ms: int
    consumers: int
    """How many were seen of late."""
    consumer_seen_ms: int | None
    """Since any was seen; None where none ever was."""
    began_ms: int
    """When the ledger began (Unix ms of its server): later than before when everything was lost."""
    age_ms: int
