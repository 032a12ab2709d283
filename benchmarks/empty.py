"""An empty Quart route on Hypercorn and uvloop, with the service's own server settings.

Run as ``python -m benchmarks.empty PORT``, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop
from hypercorn.asyncio import serve
from quart import Quart

from service.server import server_config

app = Quart("empty", static_folder=None)


@app.post("/start-job")
async def start_job() -> tuple[str, int]:
    return "", 202


async def main(port: int) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    config = server_config()
    config.bind = [f"127.0.0.1:{port}"]
    await serve(app, config, shutdown_trigger=stopping.wait)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
