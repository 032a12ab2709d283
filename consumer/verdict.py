"""What a relay's replies mean: for each recipient, then for the job. Pure.

Temporary or permanent is decided here and nowhere else, from the basic code; unknown means temporary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailjob.job import Recipient
from mailjob.lifecycle import UNSETTLED, RecipientStatus, Status
from mailjob.records import Completion

REPLY_CHARACTERS: Final = 400

RELAY_TROUBLE: Final = frozenset({421, 454, 530, 534, 535, 538})
"""Codes that speak of the relay or of our account, not of the mail: service not available (RFC 5321,
3.8), and the authentication codes of RFC 4954, section 6. The operator can cure them, so no job dies."""

TOO_MANY_RECIPIENTS: Final = 552
"""At RCPT it means 452, says RFC 5321, 4.5.3.1.10."""


class Step(StrEnum):
    """The step of an attempt that a reply answers."""

    COMPOSE = "compose"
    CONNECT = "connect"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"


class Verdict(StrEnum):
    SENT = "sent"
    RETRY = "retry"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Reply:
    """The decisive reply for one recipient. ``code`` is 0 where the relay gave none."""

    step: Step
    code: int
    text: str

    def __str__(self) -> str:
        words = " ".join(self.text.split())
        return (f"{self.code} {words}" if self.code else words)[:REPLY_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known about an attempt when it is over. Times are milliseconds."""

    number: int
    age_ms: int
    """Of the job."""
    lifetime_ms: int
    delay_ms: int
    """Until the next attempt, should there be one."""
    hold_ambiguous: bool


def judge(reply: Reply) -> Verdict:
    """A reply to the content decides for good; no reply to it is the one ambiguous case (RFC 1047)."""
    if reply.step is Step.CONTENT and reply.code == 0:
        return Verdict.UNCERTAIN
    if reply.step is Step.CONTENT and 200 <= reply.code < 300:  # noqa: PLR2004 - the 2yz class
        return Verdict.SENT
    if blames_relay(reply):
        return Verdict.RETRY
    if reply.step is Step.RCPT and reply.code == TOO_MANY_RECIPIENTS:
        return Verdict.RETRY
    if 500 <= reply.code < 600:  # noqa: PLR2004 - the 5yz class
        return Verdict.REFUSED
    return Verdict.RETRY


def blames_relay(reply: Reply) -> bool:
    """Whether other mail should wait as well."""
    return reply.step is Step.CONNECT or reply.code in RELAY_TROUBLE


def conclude(
    recipients: Sequence[Recipient], replies: Mapping[str, Reply], attempt: Attempt
) -> Completion:
    """How the attempt ends for the job. ``replies`` has one for every unsettled recipient."""
    judged = {address: judge(reply) for address, reply in replies.items()}
    out_of_time = attempt.age_ms + attempt.delay_ms > attempt.lifetime_ms
    after = tuple(
        _settle(recipient, replies[recipient.address], judged[recipient.address], attempt, out_of_time)
        if recipient.status in UNSETTLED
        else recipient
        for recipient in recipients
    )
    status = _job_status(after)
    event: dict[str, object] = {"event": status.value, "attempt": attempt.number}
    if Verdict.UNCERTAIN in judged.values():
        event["event"] = "ambiguous"
        event["policy"] = "hold" if attempt.hold_ambiguous else "resend"
    if status is Status.FAILED and out_of_time and Verdict.RETRY in judged.values():
        event["reason"] = "the job's lifetime ran out"
    if len(replies) == 1:
        event["reply"] = str(next(iter(replies.values())))
    else:
        event["replies"] = {address: str(reply) for address, reply in replies.items()}
    delay_ms = attempt.delay_ms if status is Status.DEFERRED else None
    return Completion(status=status, recipients=after, delay_ms=delay_ms, event=event)


def _settle(
    recipient: Recipient, reply: Reply, verdict: Verdict, attempt: Attempt, out_of_time: bool
) -> Recipient:
    if verdict is Verdict.SENT:
        status = RecipientStatus.SENT
    elif verdict is Verdict.REFUSED:
        status = RecipientStatus.FAILED
    elif verdict is Verdict.UNCERTAIN and (attempt.hold_ambiguous or out_of_time):
        status = RecipientStatus.UNCERTAIN
    elif out_of_time:
        status = RecipientStatus.FAILED
    else:
        status = RecipientStatus.DEFERRED
    return Recipient(recipient.address, status, str(reply))


def _job_status(recipients: Sequence[Recipient]) -> Status:
    """Deferred while anyone can still be reached; sent only when everyone was."""
    statuses = {recipient.status for recipient in recipients}
    if statuses & UNSETTLED:
        return Status.DEFERRED
    if statuses == {RecipientStatus.SENT}:
        return Status.SENT
    if RecipientStatus.UNCERTAIN in statuses:
        return Status.UNCERTAIN
    return Status.FAILED
