"""The sink as a process that can be killed; what it takes is in a file before it answers.

Run as ``python tests/sink_process.py PORT LOG``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from console.sink import Sink, Taken


async def main(port: int, log_file: Path) -> None:
    with log_file.open("a", encoding="utf-8", buffering=1) as log:

        def note(taken: Taken) -> None:
            log.write(taken.to_json() + "\n")

        async with Sink(on_taken=note).serve(port):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
