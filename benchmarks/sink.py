"""The sink in a process of its own, counting.

Run as ``python -m benchmarks.sink DELAY_SECONDS``: prints its port; then, for each line of standard
input, the number of mails taken so far; for the line ``times``, when each was, by ``Message-ID``.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from console.sink import Script, Sink, Taken

MOST_REMEMBERED = 10_000


async def main(delay: float) -> None:
    loop = asyncio.get_running_loop()
    taken = 0
    first: list[Taken] = []

    def count(mail: Taken) -> None:
        nonlocal taken
        taken += 1
        if taken <= MOST_REMEMBERED:
            first.append(mail)

    async with Sink(Script(delay=delay), on_taken=count).serve() as sink:
        print(sink.port, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "times":
                print(json.dumps({mail.message_id: mail.at for mail in first}), flush=True)
            else:
                print(taken, flush=True)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
