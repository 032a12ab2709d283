"""The sink in a process of its own, counting.

Run as ``python -m benchmarks.sink DELAY_SECONDS``: prints its port, then for each line of standard input
the number of mails taken so far.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from console.sink import Script, Sink


async def main(delay: float) -> None:
    loop = asyncio.get_running_loop()
    taken = 0

    def count(_: object) -> None:
        nonlocal taken
        taken += 1

    async with Sink(Script(delay=delay), on_taken=count).serve() as sink:
        print(sink.port, flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(taken, flush=True)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
