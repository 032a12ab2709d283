"""The socket that the service listens on, and how it is left without failing anybody.

Closing a listening socket resets the connections that wait to be accepted. So a service that stops first
sees to it that no more come, then takes in those that wait, and only then lets go of the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import select
import socket
import struct
import time
from pathlib import Path
from typing import Final

from hypercorn.config import Config

from mailjob.settings import Bind

SETTLE_SECONDS: Final = 1.0
"""For handshakes under way, for the requests of those that connected last to arrive, and for connections
in use to be told with an answer that they end: a proxy that finds out by itself has lost a request."""

BACKLOG: Final = 1024
"""Connections that may wait to be accepted; Nginx gives up at once where a unix socket has no room."""

MOST_SECONDS: Final = 3.0
"""For accepting who waits: a process without a file descriptor left never would."""

SO_ATTACH_FILTER: Final = 26
# Classic BPF (linux/filter.h) on the TCP header: a SYN is dropped, all else is kept.
_DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


class Listener:
    """Binds. Raises OSError when the address is taken or not ours."""

    def __init__(self, bind: Bind) -> None:
        self._path = Path(bind.path) if bind.path else None
        config = Config()
        config.bind = [str(bind)]
        (self.socket,) = config.create_sockets().insecure_sockets
        self._inode = self._path.stat().st_ino if self._path else 0
        self.leaving = False
        """Every answer is to be the last one of its connection."""

    async def leave(self) -> None:
        """Refuse new connections, and wait until all that came before have been accepted: then the
        socket may be closed.

        A client that is refused goes to another instance: at once where the socket is a file, else when
        it asks for the second time, a second later.
        """
        self.leaving = True
        if self._path is not None:
            with contextlib.suppress(OSError):  # gone, or no longer ours to take away
                if self._path.stat().st_ino == self._inode:  # else it is a successor's
                    self._path.unlink()
        else:
            with contextlib.suppress(OSError):  # not Linux
                _drop_syn(self.socket)
        await asyncio.sleep(SETTLE_SECONDS)
        until = time.monotonic() + MOST_SECONDS
        while select.select([self.socket], [], [], 0)[0] and time.monotonic() < until:
            await asyncio.sleep(0)


def _drop_syn(listening: socket.socket) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    program = ctypes.create_string_buffer(code, len(code))
    filtered = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)
