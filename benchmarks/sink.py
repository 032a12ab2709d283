"""A fast SMTP sink in a process of its own: takes everything, counts, answers after a delay.

Run as ``python -m benchmarks.sink DELAY_SECONDS``: prints its port, then on each line of standard input
the number of mails taken so far.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_REPLIES = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class Sink(asyncio.Protocol):
    """Command by command, and pipelined; ``taken`` counts final dots."""

    taken = 0

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""
        self._in_data = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._answer(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies = b""
        while True:
            if self._in_data:
                end = self._buffer.find(b"\r\n.\r\n")
                if end < 0:
                    break
                self._buffer = self._buffer[end + 5 :]
                self._in_data = False
                Sink.taken += 1
                replies += b"250 2.0.0 taken\r\n"
                continue
            line, ended, rest = self._buffer.partition(b"\r\n")
            if not ended:
                break
            self._buffer = rest
            verb = line[:4].upper()
            self._in_data = verb == b"DATA"
            replies += _REPLIES.get(verb, b"250 2.1.0 ok\r\n")
        if replies:
            self._answer(replies)

    def _answer(self, replies: bytes) -> None:
        if self._transport is None:
            return
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, replies)
        else:
            self._transport.write(replies)


async def main(delay: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(Sink.taken, flush=True)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
