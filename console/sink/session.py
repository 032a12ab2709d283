"""One SMTP connection of the sink."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from console.sink.script import CLOSE, HANG, Behaviour, Taken

_END = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    """One connection. ``_held`` keeps input back while a reply is late."""

    def __init__(self, sink: Behaviour, sessions: set[Session]) -> None:
        self._sink = sink
        self._sessions = sessions
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._in_content = False
        self._held = False
        self._hanging: tuple[str, Callable[[], None]] | None = None
        self._replies: list[bytes] = []
        self._login: deque[str] = deque()
        self._secure = sink.implicit_tls
        self._mails = 0
        self._clear()

    def _clear(self) -> None:
        self._sender = ""
        self._recipients: list[str] = []
        self._faults: dict[str, str] = {}

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self in self._sessions:  # again, after STARTTLS
            return
        self._sessions.add(self)
        self._sink.connections += 1
        most = self._sink.script.most_connections
        if most is not None and len(self._sessions) > most:
            self._say("421 4.7.0 too many connections")
            self._close()
        else:
            self._reply("BANNER", "220 sink ESMTP")
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._sessions.discard(self)
        self._transport = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def let_go(self) -> None:
        if self._hanging is not None:
            (reply, before), self._hanging, self._held = self._hanging, None, False
            before()
            self._say(reply)
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._held:
            self._go_on()

    def _go_on(self) -> None:
        self._obey_all()
        self._flush()

    def _obey_all(self) -> None:
        while self._buffer and not self._held and self._transport is not None:
            if self._in_content:
                if not self._take_content():
                    return
            else:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    return
                line = self._buffer[:end].decode("latin-1")
                del self._buffer[: end + 2]
                self._obey(line)

    # Replies

    def _say(self, reply: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._replies.append(reply.encode("utf-8", "surrogateescape") + b"\r\n")

    def _flush(self) -> None:
        """Send all replies of this moment at once, as a relay that pipelines does."""
        if not self._replies:
            return
        wire = b"".join(self._replies)
        self._replies.clear()
        if self._sink.script.delay:
            asyncio.get_running_loop().call_later(self._sink.script.delay, self._write, wire)
        else:
            self._write(wire)

    def _hang(self, reply: str, before: Callable[[], None] = lambda: None) -> None:
        """Take no more input until ``let_go``; then ``before``, and the reply."""
        self._held, self._hanging = True, (reply, before)

    def _write(self, wire: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire)

    def _close(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _reply(self, step: str, default: str) -> str:
        """Answer a step as the script or the default says; gives what was said."""
        reply = self._sink.answer(step, default)
        if reply == CLOSE:
            self._close()
        elif reply == HANG:
            self._hang(default)
        else:
            self._say(reply)
        return reply

    # Commands

    def _obey(self, line: str) -> None:  # noqa: PLR0912 - one branch a verb
        if self._sink.on_command is not None:
            self._sink.on_command(line)
        if self._login:
            self._log_in_step(line)
            return
        verb, _, argument = line.partition(" ")
        match verb.upper():
            case "EHLO":
                names = ["sink", *self._sink.script.extensions]
                if self._secure:
                    names = [name for name in names if name != "STARTTLS"]
                self._reply("EHLO", "\r\n".join([*(f"250-{name}" for name in names), "250 OK"]))
            case "MAIL":
                self._clear()
                self._sender = _address(argument)
                most = self._sink.script.most_mails
                if most is not None and self._mails >= most:
                    self._say("421 4.7.0 enough for one connection")
                    self._close()
                else:
                    self._reply("MAIL", "250 2.1.0 ok")
            case "RCPT":
                self._obey_rcpt(_address(argument))
            case "DATA":
                self._obey_data()
            case "STARTTLS" if self._sink.tls is not None:
                if self._reply("STARTTLS", "220 2.0.0 go ahead").startswith("220"):
                    self._held = True
                    self._buffer.clear()  # what came in clear text is not ours (RFC 3207, 4.2)
                    self._task = asyncio.get_running_loop().create_task(self._secure_transport())
            case "AUTH":
                self._obey_auth(argument)
            case "RSET":
                self._clear()
                self._reply("RSET", "250 2.0.0 ok")
            case "NOOP" | "HELO":
                self._say("250 2.0.0 ok")
            case "QUIT":
                self._say("221 2.0.0 bye")
                self._close()
            case _:
                self._say("500 5.5.1 what?")

    def _obey_rcpt(self, recipient: str) -> None:
        fault = self._sink.fault(recipient)
        if fault == ("drop", "rcpt"):
            self._close()
            return
        if fault is not None and fault[0] == "rcpt":
            self._say(f"{fault[1]} as asked")
            return
        if fault is not None:
            step, what = fault if fault[0] != "drop" else (fault[1], CLOSE)
            self._faults[step] = what
        if self._reply("RCPT", "250 2.1.5 ok").startswith(("25", HANG)):
            self._recipients.append(recipient)

    def _obey_data(self) -> None:
        if not self._recipients:
            self._say("503 5.5.1 no recipients")
            return
        asked = self._faults.get("data")
        if asked == CLOSE:
            self._close()
        elif asked is not None:
            self._say(f"{asked} as asked")
        elif self._reply("DATA", "354 go on").startswith(("354", HANG)):
            self._in_content = True

    def _take_content(self) -> bool:
        """Take the content if all of it is here."""
        if self._faults.get("content") == CLOSE:
            self._close()
            return False
        if self._buffer.startswith(b".\r\n"):
            content = b""
            del self._buffer[:3]
        else:
            end = self._buffer.find(_END)
            if end < 0:
                return False
            content = bytes(self._buffer[: end + 2])
            del self._buffer[: end + 5]
        self._in_content = False
        self._mails += 1
        self._answer_content(content)
        return True

    def _answer_content(self, content: bytes) -> None:
        asked = self._faults.get("content")
        reply = f"{asked} as asked" if asked else self._sink.answer("CONTENT", "250 2.0.0 taken")
        ends = content.count(b"\r\n")
        if content.count(b"\r") != ends or content.count(b"\n") != ends:
            reply = "550 5.6.0 bare line end"
        seconds = self._faults.get("slow")
        if self._faults.get("dot") == CLOSE or reply == CLOSE:
            self._note(content, None)
            self._close()
        elif reply == HANG:
            recipients = tuple(self._recipients)
            self._hang("250 2.0.0 taken", lambda: self._note(content, "250 2.0.0 taken", recipients))
        elif seconds is not None:
            self._note(content, reply)
            self._hang(reply)
            asyncio.get_running_loop().call_later(float(seconds), self.let_go)
        else:
            self._note(content, reply)
            self._say(reply)
        self._clear()

    def _note(
        self, content: bytes, reply: str | None, recipients: tuple[str, ...] | None = None
    ) -> None:
        if self._sink.on_taken is not None:
            to = tuple(self._recipients) if recipients is None else recipients
            self._sink.on_taken(Taken(time.time(), self._sender, to, reply, content))

    # TLS and AUTH

    async def _secure_transport(self) -> None:
        transport, context = self._transport, self._sink.tls
        if transport is None or context is None:
            return
        loop = asyncio.get_running_loop()
        try:
            secure = await loop.start_tls(transport, self, context, server_side=True)
        except (OSError, ssl.SSLError):
            self.abort()
            return
        self._transport = cast(asyncio.Transport, secure)
        self._secure, self._held = True, False
        self._go_on()

    def _obey_auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() == "PLAIN" and initial:
            _, user, password = base64.b64decode(initial).decode().split("\0")
            self._check(user, password)
        elif mechanism.upper() == "LOGIN":
            self._login.extend(["user", *([initial] if initial else [])])
            self._say("334 UGFzc3dvcmQ6" if initial else "334 VXNlcm5hbWU6")
        else:
            self._say("504 5.5.4 unknown mechanism")

    def _log_in_step(self, line: str) -> None:
        self._login.append(line)
        if len(self._login) <= 2:  # noqa: PLR2004 - the marker and the user
            self._say("334 UGFzc3dvcmQ6")
            return
        _, user, password = (*list(self._login)[:1], *map(_decode, list(self._login)[1:]))
        self._login.clear()
        self._check(user, password)

    def _check(self, user: str, password: str) -> None:
        wanted = self._sink.script.credentials
        taken = wanted is None or wanted == (user, password)
        self._reply("AUTH", "235 2.7.0 ok" if taken else "535 5.7.8 wrong user or password")


def _address(argument: str) -> str:
    """The path of ``FROM:<...>`` or ``TO:<...>``."""
    return argument.partition("<")[2].partition(">")[0]


def _decode(line: str) -> str:
    return base64.b64decode(line).decode()
