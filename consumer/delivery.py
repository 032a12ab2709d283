"""Claim, send, judge, complete: the way of every mail through the consumer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from consumer.backoff import pause, retry_delay
from consumer.compose import Composer
from consumer.courier import Courier, Mail
from consumer.intake import Inbox
from consumer.verdict import Attempt, Reply, Step, conclude
from mailjob import meters
from mailjob.errors import AsyncEmailError, LedgerUnavailableError, TemplateUnusableError
from mailjob.failpoints import Failpoint, reached
from mailjob.ledger import Ledger
from mailjob.lifecycle import FINISHED, UNSETTLED, Status
from mailjob.records import Claim, Completion, Unreadable

MOST_CLAIMS: Final = 100
"""In one pipeline."""

log = structlog.get_logger()


class ClaimLostError(AsyncEmailError):
    """Another consumer has the job; nothing of it may be sent."""


@dataclass(frozen=True)
class Policy:
    """What the operator decided. Times are seconds."""

    consumer: str
    concurrency: int
    lease: float
    retry_schedule: tuple[float, ...]
    lifetime: float
    retention: float
    hold_ambiguous: bool

    @property
    def lease_ms(self) -> int:
        return int(self.lease * 1000)

    @property
    def retention_ms(self) -> int:
        return int(self.retention * 1000)


class Flight:
    """A claimed job on its way. ``marked`` turns True when its content may go out."""

    __slots__ = ("claim", "marked", "started", "task")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.marked = False
        self.started = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    def age_ms(self) -> int:
        return self.claim.age_ms + int((time.monotonic() - self.started) * 1000)


class Delivery:
    """Belongs to one event loop. ``sender`` is the envelope sender of every mail."""

    def __init__(
        self,
        *,
        policy: Policy,
        ledger: Ledger,
        courier: Courier,
        composer: Composer,
        inbox: Inbox,
        sender: str,
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._courier = courier
        self._composer = composer
        self._inbox = inbox
        self._sender = sender
        self._flights: dict[str, Flight] = {}
        self._places = asyncio.Semaphore(policy.concurrency)

    async def run(self) -> None:
        """Claim what comes in and send it; until cancelled."""
        while True:
            await self._courier.ready()
            await self._places.acquire()
            self._places.release()
            free = self._policy.concurrency - len(self._flights)
            most = 1 if self._courier.in_doubt else min(free, MOST_CLAIMS)
            ids = await self._inbox.take(most)
            await self._claim(list(dict.fromkeys(ids)))

    async def keep_leases(self) -> None:
        """Show the ledger that this consumer lives; until cancelled."""
        wait = self._policy.lease / 3
        while True:
            await asyncio.sleep(wait)
            claims = {job_id: flight.claim.fence for job_id, flight in self._flights.items()}
            try:
                lost = await self._ledger.renew(claims, lease_ms=self._policy.lease_ms)
            except LedgerUnavailableError as error:
                log.warning("leases_not_renewed", error=str(error))
                wait = min(1.0, self._policy.lease / 3)
                continue
            wait = self._policy.lease / 3
            for job_id in lost:
                if job_id in self._flights and self._flights[job_id].claim.fence == claims[job_id]:
                    meters.CLAIMS_LOST.labels(step="renew").inc()
                    log.warning("claim_lost", job_id=job_id, step="renew")

    async def drain(self, seconds: float) -> list[str]:
        """Give back what is not past the mark, wait for the rest. Gives the ids to ring for."""
        unmarked = [flight for flight in self._flights.values() if not flight.marked]
        for flight in unmarked:
            if flight.task is not None:
                flight.task.cancel()
        tasks = {flight.task for flight in self._flights.values() if flight.task is not None}
        log.info("draining", given_back=len(unmarked), awaited=len(tasks) - len(unmarked))
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        await asyncio.gather(*(self._give_back(flight) for flight in unmarked))
        return [flight.claim.job.id for flight in unmarked] + self._inbox.left()

    async def _claim(self, ids: Sequence[str]) -> None:
        try:
            answers = await self._ledger.claim(
                ids, consumer=self._policy.consumer, lease_ms=self._policy.lease_ms
            )
        except LedgerUnavailableError as error:
            # Claimed or not: the reconciler takes these jobs up again.
            log.warning("claim_failed", jobs=len(ids), error=str(error))
            await asyncio.sleep(pause(1, random.random()))
            return
        for answer in answers:
            if isinstance(answer, Claim):
                reached(Failpoint.AFTER_CLAIM)
                meters.CLAIMS.labels(result="claimed").inc()
                await self._launch(answer)
            elif isinstance(answer, Unreadable):
                meters.CLAIMS.labels(result="unreadable").inc()
                await self._put_off(answer)
            else:
                meters.CLAIMS.labels(result=answer.reason).inc()
                if answer.reason == "unknown":
                    log.warning("unknown_job", job_id=answer.job_id)

    async def _launch(self, claim: Claim) -> None:
        await self._places.acquire()
        flight = Flight(claim)
        self._flights[claim.job.id] = flight
        meters.IN_FLIGHT.inc()
        flight.task = asyncio.create_task(self._fly(flight))
        flight.task.add_done_callback(lambda _: self._land(flight))

    def _land(self, flight: Flight) -> None:
        del self._flights[flight.claim.job.id]
        self._places.release()
        meters.IN_FLIGHT.dec()

    async def _fly(self, flight: Flight) -> None:
        claim = flight.claim
        try:
            replies = await self._send(flight)
        except ClaimLostError:
            meters.CLAIMS_LOST.labels(step="mark").inc()
            log.warning("claim_lost", job_id=claim.job.id, attempt=claim.attempt, step="mark")
            return
        except LedgerUnavailableError as error:
            log.warning("mark_failed", job_id=claim.job.id, attempt=claim.attempt, error=str(error))
            await self._give_back(flight)
            return
        delay = retry_delay(self._policy.retry_schedule, claim.attempt, random.random())
        attempt = Attempt(
            number=claim.attempt,
            age_ms=flight.age_ms(),
            lifetime_ms=int(self._policy.lifetime * 1000),
            delay_ms=int(delay * 1000),
            hold_ambiguous=self._policy.hold_ambiguous,
        )
        completion = conclude(claim.job.recipients, replies, attempt)
        for reply in replies.values():
            reply_class = f"{reply.code // 100}xx" if reply.code else "none"
            meters.RELAY_REPLIES.labels(step=reply.step, reply_class=reply_class).inc()
        reached(Failpoint.AFTER_REPLY)
        if await self._complete(claim.job.id, claim.fence, completion):
            reached(Failpoint.AFTER_COMPLETE)
            self._note(flight, completion)

    async def _send(self, flight: Flight) -> dict[str, Reply]:
        claim = flight.claim
        open_recipients = [
            recipient.address for recipient in claim.job.recipients if recipient.status in UNSETTLED
        ]
        try:
            content = self._composer.compose(claim.job, claim.created_ms)
        except TemplateUnusableError as error:
            log.error("template_unusable", job_id=claim.job.id, error=str(error))
            return dict.fromkeys(open_recipients, Reply(Step.COMPOSE, 0, str(error)))

        async def mark() -> None:
            held = await self._ledger.mark(claim.job.id, claim.fence, lease_ms=self._policy.lease_ms)
            if not held:
                raise ClaimLostError(f"another consumer has job {claim.job.id}")
            flight.marked = True
            reached(Failpoint.AFTER_MARK)

        return await self._courier.send(Mail(self._sender, open_recipients, content), mark)

    async def _give_back(self, flight: Flight) -> None:
        """The job is due at once, for whoever takes it."""
        event = {"event": "given_back", "consumer": self._policy.consumer}
        completion = Completion(Status.QUEUED, None, 0, event)
        await self._complete(flight.claim.job.id, flight.claim.fence, completion)

    async def _put_off(self, unreadable: Unreadable) -> None:
        """Perhaps a newer consumer can read it: try later, as long as the job may live."""
        delay = retry_delay(self._policy.retry_schedule, unreadable.attempt, random.random())
        alive = unreadable.age_ms / 1000 + delay <= self._policy.lifetime
        status = Status.DEFERRED if alive else Status.FAILED
        event = {"event": status, "attempt": unreadable.attempt, "reason": unreadable.reason}
        log.error("unreadable_job", job_id=unreadable.job_id, error=unreadable.reason)
        completion = Completion(status, None, int(delay * 1000) if alive else None, event)
        held = await self._complete(unreadable.job_id, unreadable.fence, completion)
        if held and not alive:
            meters.FINISHED_JOBS.labels(outcome=Status.FAILED).inc()

    async def _complete(self, job_id: str, fence: int, completion: Completion) -> bool:
        """Tell the ledger, for as long as it takes: what a relay said must not be forgotten."""
        failures = 0
        while True:
            try:
                held = await self._ledger.complete(
                    job_id, fence, completion, retention_ms=self._policy.retention_ms
                )
            except LedgerUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("complete_failed", job_id=job_id, error=str(error))
                await asyncio.sleep(min(1.0, pause(failures, random.random(), first=0.1)))
                continue
            if not held:
                meters.CLAIMS_LOST.labels(step="complete").inc()
                log.warning("claim_lost", job_id=job_id, step="complete", status=completion.status)
            return held

    @staticmethod
    def _note(flight: Flight, completion: Completion) -> None:
        claim = flight.claim
        if completion.event["event"] == "ambiguous":
            meters.AMBIGUOUS.inc()
        if completion.status in FINISHED:
            meters.FINISHED_JOBS.labels(outcome=completion.status).inc()
        if completion.status is Status.SENT:
            meters.END_TO_END_SECONDS.observe(flight.age_ms() / 1000)
        if completion.status is Status.DEFERRED:
            meters.DEFERRED.inc()
        record = log.info if completion.status is Status.SENT else log.warning
        fields = {name: value for name, value in completion.event.items() if name != "event"}
        record(f"job_{completion.event['event']}", job_id=claim.job.id, **fields)
