"""``python -m service``: one process of the API, served by Hypercorn until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Final

from hypercorn.asyncio import serve
from hypercorn.config import Config

from mailjob.errors import StartError
from mailjob.process import run_program
from mailjob.settings import ServiceSettings
from mailjob.supervision import Supervisor
from service.app import make_app
from service.listener import Listener

DRAIN_SECONDS: Final = 20.0
"""How long requests under way may take to end after SIGTERM."""

KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than Nginx keeps an idle upstream connection (60 s): it never writes into a closed one."""


BACKLOG: Final = 1024
"""Connections that may wait to be accepted; Nginx gives up at once where a unix socket has no room."""


def server_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.graceful_timeout = DRAIN_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.backlog = BACKLOG
    return config


async def serve_until_stopped(settings: ServiceSettings, supervisor: Supervisor) -> bool:
    """Raises StartError when the address is taken or not ours."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async def stopped() -> None:
        """Hypercorn waits for this once it listens, and closes its socket after it."""
        supervisor.ready()
        await stopping.wait()
        supervisor.stopping()
        await listener.leave()

    config = server_config()
    try:
        listener = Listener(settings.api_bind, config)
    except OSError as error:
        raise StartError(f"cannot listen on API_BIND={settings.api_bind}: {error}") from error
    living = asyncio.create_task(supervisor.keep_alive())
    try:
        app = make_app(settings, leaving=lambda: listener.leaving)
        await serve(app, config, shutdown_trigger=stopped)
    finally:
        living.cancel()
    return True


if __name__ == "__main__":
    sys.exit(run_program("service", ServiceSettings, serve_until_stopped))
