"""``python -m service``: one process of the API, served by Hypercorn until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys

from mailjob.errors import StartError
from mailjob.process import run_program
from mailjob.settings import ServiceSettings
from mailjob.supervision import Supervisor
from service.app import make_app
from service.listener import Listener
from service.server import serve


async def serve_until_stopped(settings: ServiceSettings, supervisor: Supervisor) -> bool:
    """Raises StartError when the address is taken or not ours."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async def stopped() -> None:
        supervisor.ready()
        await stopping.wait()
        supervisor.stopping()
        await listener.leave()

    try:
        listener = Listener(settings.api_bind)
    except OSError as error:
        raise StartError(f"cannot listen on API_BIND={settings.api_bind}: {error}") from error
    living = asyncio.create_task(supervisor.keep_alive())
    try:
        app = make_app(settings, leaving=lambda: listener.leaving)
        await serve(app, listener, stopped)
    finally:
        living.cancel()
    return True


if __name__ == "__main__":
    sys.exit(run_program("service", ServiceSettings, serve_until_stopped))
