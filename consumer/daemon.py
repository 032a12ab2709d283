"""The only wiring of the consumer: builds its parts, runs them, and drains them when told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Coroutine
from typing import Any, Final

import structlog
from prometheus_client import start_http_server

from consumer.compose import Composer, compile_template
from consumer.courier import Courier, Relay
from consumer.delivery import Delivery, Policy
from consumer.intake import Inbox, Intake
from consumer.reconciler import Pace, Reconciler
from consumer.templates import read_templates
from mailjob import meters
from mailjob.durability import watch_durability
from mailjob.errors import StartError
from mailjob.ledger import Ledger
from mailjob.settings import AmbiguousPolicy, ConsumerSettings
from mailjob.supervision import Supervisor

LEDGER_SECONDS: Final = 5.0
BROKER_SECONDS: Final = 8.0
"""Longest wait for the intake thread's last words."""

log = structlog.get_logger()


class Daemon:
    def __init__(self, settings: ConsumerSettings) -> None:
        """Build everything; nothing connects yet. Raises TemplateUnusableError."""
        self._settings = settings
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        templates = [compile_template(source) for source in read_templates(settings.template_dir)]
        self._ledger = Ledger(settings.redis_url, reply_seconds=LEDGER_SECONDS)
        self._courier = Courier(Relay.of(settings), settings.smtp_connections)
        self._inbox = Inbox()
        self._intake = Intake(settings.broker_url, self._inbox)
        self._delivery = Delivery(
            policy=Policy(
                consumer=name,
                concurrency=settings.most_in_flight,
                lease=settings.lease_seconds,
                retry_schedule=settings.retry_schedule,
                lifetime=settings.job_lifetime,
                retention=settings.job_retention,
                hold_ambiguous=settings.ambiguous_policy is AmbiguousPolicy.HOLD,
            ),
            ledger=self._ledger,
            courier=self._courier,
            composer=Composer(settings.mail_from, templates),
            inbox=self._inbox,
            sender=settings.mail_from.address,
        )
        pace = Pace(
            interval=settings.reconcile_seconds,
            grace=settings.grace_seconds,
            retention=settings.job_retention,
            policy=settings.ambiguous_policy,
        )
        self._reconciler = Reconciler(self._ledger, self._inbox, pace, self._delivery.renew)
        self._name = name

    async def run(self, supervisor: Supervisor) -> bool:
        """Work until SIGTERM or SIGINT, then drain. False when a part of it died instead.

        Raises StartError when the metrics cannot be shown where they are wanted.
        """
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        bind = self._settings.consumer_metrics_bind
        try:
            server, _ = start_http_server(bind.port, bind.host, registry=meters.REGISTRY)
        except OSError as error:
            raise StartError(f"cannot listen on CONSUMER_METRICS_BIND={bind}: {error}") from error
        self._intake.start()
        intake_work = {_task(self._delivery.run()), _task(self._reconciler.run())}
        side_work = {
            _task(self._delivery.keep_leases()),
            _task(supervisor.keep_alive()),
            _task(self._courier.tidy()),
            _task(watch_durability(self._ledger)),
        }
        supervisor.ready()
        log.info("consumer_started", consumer=self._name, metrics=f"{bind.host}:{server.server_port}")
        waiter = _task(stopping.wait())
        try:
            ended, _ = await asyncio.wait(
                {waiter, *intake_work, *side_work}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in ended - {waiter}:
                log.error("part_died", part=task.get_name(), exc_info=task.exception())
            supervisor.stopping()
            await self._drain(intake_work)
        finally:
            for task in {waiter, *intake_work, *side_work}:
                task.cancel()
            server.shutdown()
        log.info("consumer_stopped", consumer=self._name)
        return ended == {waiter}

    async def _drain(self, intake_work: set[asyncio.Task[Any]]) -> None:
        """Stop popping, give back, ring for that, then wait for what was handed over."""
        deadline = time.monotonic() + self._settings.drain_seconds
        self._intake.stop()
        while still := {task for task in intake_work if not task.done()}:
            for task in still:
                task.cancel()
            await asyncio.wait(still, timeout=1.0)
        ids = await self._delivery.give_back(max(0.0, deadline - time.monotonic()))
        ringing = asyncio.create_task(asyncio.to_thread(self._intake.finish, ids, BROKER_SECONDS))
        await self._delivery.settle(max(0.0, deadline - time.monotonic()))
        await ringing
        await self._courier.close()
        await self._ledger.close()


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work, name=getattr(work, "__qualname__", None))
