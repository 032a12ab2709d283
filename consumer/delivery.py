"""Claim, send, judge, complete: the way of every mail through the consumer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from consumer.backoff import pause, retry_delay
from consumer.compose import Composer
from consumer.courier import Courier, Mail
from consumer.flights import Flight, Flights
from consumer.intake import Inbox
from consumer.verdict import Attempt, Reply, Step, conclude
from mailjob import meters
from mailjob.errors import AsyncEmailError, LedgerUnavailableError, TemplateUnusableError
from mailjob.failpoints import Failpoint, reached
from mailjob.ledger import Ledger
from mailjob.lifecycle import FINISHED, UNSETTLED, Status
from mailjob.records import Claim, Completion, Refusal, Unreadable

MOST_CLAIMS: Final = 100
"""In one pipeline."""

Answer = Claim | Refusal | Unreadable

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
    def lifetime_ms(self) -> int:
        return int(self.lifetime * 1000)

    @property
    def retention_ms(self) -> int:
        return int(self.retention * 1000)


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
        self._flights = Flights(policy.concurrency)
        self._claiming: asyncio.Task[list[Answer]] | None = None

    async def run(self) -> None:
        """Claim what comes in and send it; until cancelled."""
        while True:
            room = await self._flights.room()
            ids = await self._inbox.take(min(room, MOST_CLAIMS))
            if self._courier.in_doubt:  # one mail at a time, until one gets through
                self._inbox.give(ids[1:])
                ids = ids[:1]
                await self._flights.handed_over()
                await self._courier.ready()
            await self._claim(list(dict.fromkeys(ids)))

    async def renew(self) -> None:
        """Show the ledger that this consumer lives. Raises LedgerUnavailableError."""
        fences = self._flights.fences()
        lost = await self._ledger.renew(
            fences, consumer=self._policy.consumer, lease_ms=self._policy.lease_ms
        )
        self._flights.note_lost(lost, fences)

    async def keep_leases(self) -> None:
        """Renew in time, and often after a failure; until cancelled."""
        wait = self._policy.lease / 3
        while True:
            await asyncio.sleep(wait)
            wait = self._policy.lease / 3
            try:
                await self.renew()
            except LedgerUnavailableError as error:
                log.warning("leases_not_renewed", error=str(error))
                wait = min(1.0, wait)

    async def give_back(self, seconds: float) -> list[str]:
        """Give back all that is not past the mark; ``run`` must have been cancelled.

        Takes at most ``seconds``: without the ledger, the reconciler of another consumer takes the
        jobs up. Gives the ids to ring for.
        """
        flights = self._flights.now()
        unmarked = [flight for flight in flights if not flight.marked]
        log.info("draining", given_back=len(unmarked), awaited=len(flights) - len(unmarked))
        try:
            async with asyncio.timeout(seconds):
                ids = await self._return(unmarked)
        except TimeoutError:
            log.warning("drain_timed_out", jobs=len(unmarked), step="give_back")
            ids = []
        return ids + self._inbox.left()

    async def settle(self, seconds: float) -> None:
        """Wait for the replies to what is past the mark, at most ``seconds``."""
        tasks = {flight.task for flight in self._flights.now()}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        if late:
            log.warning("drain_timed_out", jobs=len(late), step="settle")
        for task in late:
            task.cancel()

    async def _return(self, flights: Sequence[Flight]) -> list[str]:
        """Stop these and give their jobs back, and those of a claim that was under way."""
        for flight in flights:
            flight.task.cancel()
        if flights:
            await asyncio.wait([flight.task for flight in flights])
        # Of a mail that was cancelled nothing was sent, also where its mark still came through.
        claims = [flight.claim for flight in flights if flight.task.cancelled()]
        if self._claiming is not None:
            with contextlib.suppress(LedgerUnavailableError):
                claims += [answer for answer in await self._claiming if isinstance(answer, Claim)]
        await asyncio.gather(*(self._give_back(claim) for claim in claims))
        return [claim.job.id for claim in claims]

    async def _claim(self, ids: Sequence[str]) -> None:
        self._claiming = asyncio.create_task(
            self._ledger.claim(ids, consumer=self._policy.consumer, lease_ms=self._policy.lease_ms)
        )
        try:
            answers = await asyncio.shield(self._claiming)
        except LedgerUnavailableError as error:
            # Claimed or not: the reconciler takes these jobs up again.
            log.warning("claim_failed", jobs=len(ids), error=str(error))
            await asyncio.sleep(pause(1, random.random()))
            return
        self._claiming = None
        unreadable = [self._take_off(answer) for answer in answers]
        for answer in unreadable:
            if answer is not None:
                await self._put_off(answer)

    def _take_off(self, answer: Answer) -> Unreadable | None:
        """Send what was claimed; count the rest. Gives back what cannot be read."""
        if isinstance(answer, Claim):
            reached(Failpoint.AFTER_CLAIM)
            meters.claim_result("claimed").inc()
            self._flights.launch(answer, self._fly)
            return None
        if isinstance(answer, Unreadable):
            meters.claim_result("unreadable").inc()
            return answer
        meters.claim_result(answer.reason).inc()
        if answer.reason == "unknown":
            log.warning("unknown_job", job_id=answer.job_id)
        return None

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
            await self._give_back(claim)
            return
        except Exception as error:
            log.exception("attempt_broke", job_id=claim.job.id, attempt=claim.attempt)
            step = Step.CONTENT if flight.marked else Step.COMPOSE
            words = f"this program failed: {type(error).__name__}"
            replies = dict.fromkeys(_open_recipients(claim), Reply(step, 0, words))
        delay = retry_delay(self._policy.retry_schedule, claim.attempt, random.random())
        attempt = Attempt(
            number=claim.attempt,
            age_ms=flight.age_ms(),
            lifetime_ms=self._policy.lifetime_ms,
            delay_ms=int(delay * 1000),
            hold_ambiguous=self._policy.hold_ambiguous,
        )
        completion = conclude(claim.job.recipients, replies, attempt)
        for reply in replies.values():
            reply_class = f"{reply.code // 100}xx" if reply.code else "none"
            meters.relay_reply(reply.step, reply_class).inc()
        reached(Failpoint.AFTER_REPLY)
        if await self._complete(claim.job.id, claim.fence, completion):
            reached(Failpoint.AFTER_COMPLETE)
            self._note(flight, completion)

    async def _send(self, flight: Flight) -> dict[str, Reply]:
        claim = flight.claim
        if flight.age_ms() > self._policy.lifetime_ms:
            return {
                recipient.address: Reply(Step.COMPOSE, 0, recipient.reply or "it was never tried")
                for recipient in claim.job.recipients
                if recipient.status in UNSETTLED
            }
        recipients = _open_recipients(claim)
        try:
            content = self._composer.compose(claim.job, claim.created_ms)
        except TemplateUnusableError as error:
            log.error("template_unusable", job_id=claim.job.id, error=str(error))
            return dict.fromkeys(recipients, Reply(Step.COMPOSE, 0, str(error)))

        async def mark() -> None:
            held = await self._ledger.mark(claim.job.id, claim.fence, lease_ms=self._policy.lease_ms)
            if not held:
                raise ClaimLostError(f"another consumer has job {claim.job.id}")
            flight.marked = True
            reached(Failpoint.AFTER_MARK)

        return await self._courier.send(Mail(self._sender, recipients, content), mark)

    async def _give_back(self, claim: Claim) -> None:
        """The job is due at once, for whoever takes it."""
        event = {"event": "given_back", "consumer": self._policy.consumer}
        await self._complete(claim.job.id, claim.fence, Completion(Status.QUEUED, None, 0, event))

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
            meters.finished(Status.FAILED).inc()

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
            meters.finished(completion.status).inc()
        if completion.status is Status.SENT:
            meters.END_TO_END_SECONDS.observe(flight.age_ms() / 1000)
        if completion.status is Status.DEFERRED:
            meters.DEFERRED.inc()
        record = log.info if completion.status is Status.SENT else log.warning
        fields = {name: value for name, value in completion.event.items() if name != "event"}
        record(f"job_{completion.event['event']}", job_id=claim.job.id, **fields)


def _open_recipients(claim: Claim) -> list[str]:
    """The addresses that a relay has not decided on yet."""
    return [recipient.address for recipient in claim.job.recipients if recipient.status in UNSETTLED]
