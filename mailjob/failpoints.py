"""Named points at which a program can be made to die, as a power cut would: for tests alone.

``FAILPOINT=name`` kills the process with SIGKILL when it comes to that point, ``FAILPOINT=name:3``
when it does so for the third time. Unset, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum


class Failpoint(StrEnum):
    """Every point there is, in the order in which a job meets them."""

    BEFORE_ACCEPT = "before_accept"
    AFTER_ACCEPT = "after_accept"
    """The job is in the ledger; its doorbell was not rung, and nobody was told."""
    AFTER_POP = "after_pop"
    """The doorbell was taken from the broker; nothing of it is claimed."""
    AFTER_CLAIM = "after_claim"
    AFTER_RCPT = "after_rcpt"
    """The relay took the recipients; the content is not marked."""
    AFTER_MARK = "after_mark"
    MID_CONTENT = "mid_content"
    """Half of the content was written."""
    AFTER_DOT = "after_dot"
    """The final dot was written; the reply was not read."""
    AFTER_REPLY = "after_reply"
    """The relay took the mail; the ledger does not know."""
    AFTER_COMPLETE = "after_complete"


_armed: Failpoint | None = None
_left = 0


def arm(point: Failpoint, times: int) -> None:
    """Die when ``point`` is reached for the ``times``-th time. Called once, when a program starts."""
    global _armed, _left
    _armed, _left = point, times


def reached(point: Failpoint) -> None:
    if is_due(point):
        die()


def is_due(point: Failpoint) -> bool:
    """Whether this is the time to die; for a point that needs something done before it is reached."""
    global _left  # noqa: PLW0603 - likewise
    if point is not _armed:
        return False
    _left -= 1
    return _left == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
