"""The only wiring of the service: builds every part and fits them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from quart import Quart

from mailjob import meters
from mailjob.durability import watch_durability
from mailjob.ledger import Ledger
from mailjob.settings import ApiAuth, ServiceSettings
from service import routes, start_job
from service.authentication import Authenticator
from service.connection import Application
from service.observation import Observation
from service.publisher import Publisher
from service.start_job import StartJob
from service.submission import Submission

LEDGER_SECONDS: Final = 1.5
"""Longest wait for the ledger: an answer, if only 503, comes within 2 s."""

STOP_SECONDS: Final = 3.0

SEEN_FROM_THE_START: Final = (202, 500, 503)
"""Statuses that are counted from 0 on: Prometheus's rate() misses the 1 that a series begins with."""

log = structlog.get_logger()


def make_app(settings: ServiceSettings, leaving: Callable[[], bool] = lambda: False) -> Quart:
    """Everything is built here; nothing connects before the server starts.

    While ``leaving``, every answer closes its connection.
    """
    ledger = Ledger(settings.redis_url, reply_seconds=LEDGER_SECONDS)
    publisher = Publisher(settings.broker_url)
    submission = Submission(
        ledger,
        publisher.ring,
        grace_seconds=settings.grace_seconds,
        most_pending=settings.max_pending,
    )
    authenticator = Authenticator(ledger.keyring) if settings.api_auth is ApiAuth.KEYS else None

    app = Application("async-email", {start_job.PATH: StartJob(submission, authenticator)})
    routes.add_routes(app, routes.Parts(ledger, authenticator, broker_up=lambda: publisher.up))
    app.register_error_handler(Exception, routes.answer_error)

    for status in SEEN_FROM_THE_START:
        meters.http_requests("POST", start_job.PATH, status)

    watching: list[asyncio.Task[None]] = []

    @app.before_serving
    async def start() -> None:
        publisher.start()
        watching.append(asyncio.create_task(watch_durability(ledger)))
        log.info("service_starting", bind=str(settings.api_bind), auth=settings.api_auth)

    @app.after_serving
    async def stop() -> None:
        for task in watching:
            task.cancel()
        await asyncio.to_thread(publisher.stop, STOP_SECONDS)
        await ledger.close()
        log.info("service_stopped")

    app.asgi_app = Observation(app, leaving)  # type: ignore[method-assign]  # Quart's own way to wrap
    return app
