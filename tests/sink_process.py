"""The sink as a process that can be killed; what it takes is in a file before it answers.

Run as ``python tests/sink_process.py PORT LOG [USER PASSWORD]``; with them it takes no other login.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from console.sink import Script, Sink, Taken


async def main(port: int, log_file: Path, credentials: tuple[str, str] | None) -> None:
    with log_file.open("a", encoding="utf-8", buffering=1) as log:

        def note(taken: Taken) -> None:
            log.write(taken.to_json() + "\n")

        script = Script()
        if credentials is not None:
            script = replace(
                script, credentials=credentials, extensions=[*script.extensions, "AUTH PLAIN LOGIN"]
            )
        async with Sink(script, on_taken=note).serve(port):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(
        main(int(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3], sys.argv[4]) if sys.argv[3:] else None)
    )
