"""How the sink behaves, and what it remembers of a mail."""

from __future__ import annotations

import json
import re
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

CLOSE: Final = "(close)"
HANG: Final = "(hang)"

_MESSAGE_ID = re.compile(rb"^message-id:\s*(\S+)", re.IGNORECASE | re.MULTILINE)
_FAULT = re.compile(r"(?P<step>rcpt|data|content|drop|slow)-(?P<what>[a-z0-9.]+)(?:-x(?P<times>\d+))?\+")


@dataclass(frozen=True)
class Script:
    """How the server behaves. May be replaced while it runs."""

    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extensions: Sequence[str] = ("PIPELINING", "8BITMIME")
    delay: float = 0.0
    """Seconds before every reply, as a relay far away has them."""
    most_connections: int | None = None
    """More than these are answered 421."""
    most_mails: int | None = None
    """On one connection; MAIL after these is answered 421."""
    credentials: tuple[str, str] | None = None
    """Others are answered 535; None takes any."""


@dataclass(frozen=True)
class Taken:
    """A mail whose final dot was seen. ``reply`` is None where the connection was closed instead."""

    at: float
    sender: str
    recipients: tuple[str, ...]
    reply: str | None
    content: bytes

    @property
    def message_id(self) -> str:
        found = _MESSAGE_ID.search(self.content)
        return found[1].decode("latin-1") if found else ""

    @property
    def accepted(self) -> bool:
        """Whether this server answers for the mail, also when the client was not told."""
        return self.reply is None or self.reply.startswith("2")

    def to_json(self) -> str:
        seen = {"at": self.at, "message_id": self.message_id, "recipients": self.recipients}
        return json.dumps({**seen, "reply": self.reply, "accepted": self.accepted})


class Behaviour:
    """What all sessions of one sink share.

    ``on_taken`` is called for every final dot; ``on_command`` for every line before the content.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        on_taken: Callable[[Taken], None] | None = None,
        on_command: Callable[[str], None] | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
    ) -> None:
        self.script = script or Script()
        self.on_taken = on_taken
        self.on_command = on_command
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.connections = 0
        """Opened so far."""
        self.asked: Counter[str] = Counter()

    def answer(self, step: str, default: str) -> str:
        """The script's next reply for this step, else the default."""
        answers = self.script.answers.get(step)
        if not answers:
            return default
        number = self.asked[step]
        self.asked[step] += 1
        return answers[min(number, len(answers) - 1)]

    def fault(self, recipient: str) -> tuple[str, str] | None:
        """The fault that this recipient asks for this time."""
        match = _FAULT.match(recipient)
        if match is None:
            return None
        if match["times"] is not None:
            self.asked[recipient] += 1
            if self.asked[recipient] > int(match["times"]):
                return None
        return match["step"], match["what"]
