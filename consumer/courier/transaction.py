"""What a mail says on the wire, and what the replies to it mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from consumer.verdict import Reply, Step

OK: Final = 250
WILL_FORWARD: Final = 251
START_INPUT: Final = 354

DATA: Final = b"DATA\r\n"
END: Final = b".\r\n"

_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Mail:
    """An envelope and its content. All addresses are ASCII and were checked at the door."""

    sender: str
    recipients: Sequence[str]
    content: bytes


class Answer(NamedTuple):
    """A reply as it came. Its lines are joined with line feeds."""

    code: int
    text: str

    @property
    def takes(self) -> bool:
        """Whether it takes the sender or recipient that it answers."""
        return self.code in {OK, WILL_FORWARD}

    @property
    def refuses(self) -> bool:
        return 400 <= self.code < 600  # noqa: PLR2004 - the 4yz and 5yz classes


class Outcome(NamedTuple):
    """How the relay took an envelope."""

    replies: dict[str, Reply]
    """The decisive reply for each recipient that will not get the content."""
    taken: list[str]
    """The others. Only when there are any does the relay wait for the content."""


def commands(mail: Mail) -> list[bytes]:
    """MAIL, RCPT for each recipient, DATA."""
    return [
        b"MAIL FROM:<%s>\r\n" % mail.sender.encode("ascii"),
        *(b"RCPT TO:<%s>\r\n" % recipient.encode("ascii") for recipient in mail.recipients),
        DATA,
    ]


def read_envelope(mail: Mail, heard: Sequence[Answer], lost: str) -> Outcome:
    """``heard`` answers ``commands``, as far as replies came; ``lost`` says why the others did not."""

    def reply(step: Step, place: int) -> Reply:
        return Reply(step, *heard[place]) if place < len(heard) else no_reply(step, lost)

    first = reply(Step.MAIL, 0)
    if first.code != OK:
        return Outcome(dict.fromkeys(mail.recipients, first), [])
    replies: dict[str, Reply] = {}
    taken: list[str] = []
    for place, recipient in enumerate(mail.recipients, 1):
        if place < len(heard) and heard[place].takes:
            taken.append(recipient)
        else:
            replies[recipient] = reply(Step.RCPT, place)
    if taken:
        last = reply(Step.DATA, len(mail.recipients) + 1)
        if last.code != START_INPUT:
            return Outcome(replies | dict.fromkeys(taken, last), [])
    return Outcome(replies, taken)


def no_reply(step: Step, why: str) -> Reply:
    return Reply(step, 0, f"connection lost at {step}: {why}")


def stuff(content: bytes) -> bytes:
    """Content for DATA: every line end CR LF, then dots doubled (RFC 5321, 4.5.2), in that order.

    The order matters: a relay that takes a bare LF for a line end would else see a final dot where we
    see none (SMTP smuggling).
    """
    ends = content.count(b"\r\n")
    if content.count(b"\r") != ends or content.count(b"\n") != ends:
        content = _LINE_END.sub(b"\r\n", content)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    if content.startswith(b"."):
        content = b"." + content
    return content.replace(b"\r\n.", b"\r\n..")
