"""What systemd is told (sd_notify(3)): that the program is ready, that it lives, that it stops.

Does nothing where no supervisor listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

UNWATCHED_SECONDS: Final = 3600.0


class Supervisor:
    """The watchdog is fed by the event loop itself: a loop that hangs is a program that hangs."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        meant = environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
        self._watchdog_seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if meant else 0.0

    def ready(self) -> None:
        self._say("READY=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    async def keep_alive(self) -> None:
        """Feed the watchdog, three times as often as it asks for; until cancelled."""
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 3 or UNWATCHED_SECONDS)

    def _say(self, state: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):  # an abstract socket
            address = "\0" + address[1:]
        # A supervisor that does not listen is no reason to stop working.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(state.encode(), address)
