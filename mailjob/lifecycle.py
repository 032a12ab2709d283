"""The life of a job as a table: which status may follow which. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    SCHEDULED = "scheduled"
    """Waits for the time it was asked for."""
    QUEUED = "queued"
    """Due: waits for a consumer."""
    SENDING = "sending"
    """A consumer holds a leased claim on it."""
    DEFERRED = "deferred"
    """Could not be sent yet; will be tried again."""
    SENT = "sent"
    """A relay took the mail for every recipient."""
    FAILED = "failed"
    """Refused for good for at least one recipient, or its lifetime ran out."""
    UNCERTAIN = "uncertain"
    """The connection was lost after the final dot, and the policy is to hold such jobs."""
    CANCELLED = "cancelled"
    """Withdrawn before it was sent."""
    SUPPRESSED = "suppressed"
    """Not sent, because its recipient must not be written to."""


TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.SCHEDULED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.SENDING, Status.CANCELLED, Status.SUPPRESSED}),
    Status.SENDING: frozenset(
        {Status.SENT, Status.FAILED, Status.DEFERRED, Status.UNCERTAIN, Status.QUEUED}
    ),
    Status.DEFERRED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.SENT: frozenset(),
    Status.FAILED: frozenset(),
    Status.UNCERTAIN: frozenset({Status.SENT, Status.FAILED, Status.DEFERRED, Status.QUEUED}),
    Status.CANCELLED: frozenset(),
    Status.SUPPRESSED: frozenset(),
}
"""The one table. The ledger's scripts and the README's diagram are made from it."""

FINISHED: Final = frozenset(
    {Status.SENT, Status.FAILED, Status.UNCERTAIN, Status.CANCELLED, Status.SUPPRESSED}
)
"""Nothing more happens by itself to a job in one of these; every other is in the ``due`` set."""


class RecipientStatus(StrEnum):
    """What became of one recipient of a job."""

    PENDING = "pending"
    DEFERRED = "deferred"
    SENT = "sent"
    FAILED = "failed"
    UNCERTAIN = "uncertain"


UNSETTLED: Final = frozenset({RecipientStatus.PENDING, RecipientStatus.DEFERRED})
"""Only these recipients are named to a relay in the next attempt."""
