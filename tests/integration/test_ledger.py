"""The ledger's steps against a real server."""

from __future__ import annotations

import asyncio
import signal
from typing import cast

import pytest
import redis
from ledger_server import LedgerServer

from mailjob.errors import BacklogFullError, IdempotencyConflictError, LedgerUnavailableError
from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.ledger import Ledger
from mailjob.lifecycle import RecipientStatus, Status
from mailjob.records import Claim, Completion, Idempotency, Refusal, Unreadable

SENT = Completion(
    Status.SENT,
    (Recipient("ada@example.org", RecipientStatus.SENT, "250 taken"),),
    None,
    {"event": "sent", "attempt": 1, "reply": "250 taken"},
)


def deferred(delay_ms: int) -> Completion:
    recipients = (Recipient("ada@example.org", RecipientStatus.DEFERRED, "450 later"),)
    return Completion(Status.DEFERRED, recipients, delay_ms, {"event": "deferred", "attempt": 1})


def new_job() -> Job:
    return Job(new_job_id(), Body("welcome", {"name": "Ada"}), (Recipient("ada@example.org"),))


async def accepted(ledger: Ledger, *, grace_ms: int = 10_000) -> str:
    return (await ledger.accept(new_job(), grace_ms=grace_ms)).job_id


async def claimed(ledger: Ledger, job_id: str, *, lease_ms: int = 15_000) -> Claim:
    (answer,) = await ledger.claim([job_id], consumer="c1", lease_ms=lease_ms)
    assert isinstance(answer, Claim), answer
    return answer


async def complete(ledger: Ledger, claim: Claim, completion: Completion) -> bool:
    return await ledger.complete(claim.job.id, claim.fence, completion, retention_ms=60_000)


async def sweep(ledger: Ledger, policy: str = "resend", limit: int = 100) -> list[str]:
    swept = await ledger.reconcile(limit=limit, grace_ms=10_000, policy=policy, retention_ms=60_000)
    return list(swept.ready)


async def status(ledger: Ledger, job_id: str) -> Status:
    record = await ledger.read(job_id)
    assert record is not None
    return record.status


def make_due(store: redis.Redis, job_id: str) -> None:
    """As if its time had come."""
    store.zadd("mail:{0}:due", {job_id: 1}, xx=True)


async def test_the_life_of_a_job(ledger: Ledger, store: redis.Redis) -> None:
    job = new_job()
    assert (await ledger.accept(job, grace_ms=10_000)).job_id == job.id
    record = await ledger.read(job.id)
    assert record is not None
    assert (record.status, record.attempts, record.events) == (Status.QUEUED, 0, ())
    assert record.due_ms is not None
    assert 9_000 < record.due_ms - record.created_ms <= 10_000

    claim = await claimed(ledger, job.id)
    assert (claim.job, claim.fence, claim.attempt) == (job, 1, 1)
    assert await ledger.mark(job.id, claim.fence, lease_ms=15_000)
    assert await complete(ledger, claim, SENT)

    record = await ledger.read(job.id)
    assert record is not None
    assert record.status is Status.SENT
    assert record.due_ms is None
    assert record.recipients == SENT.recipients
    assert [event.name for event in record.events] == ["sending", "sent"]
    assert record.events[0].details == {"attempt": 1, "consumer": "c1"}
    assert not store.hexists(f"mail:{{0}}:job:{job.id}", "body")
    assert 0 < store.pttl(f"mail:{{0}}:job:{job.id}") <= 60_000
    assert store.zcard("mail:{0}:due") == 0


async def test_a_job_can_only_be_claimed_once(ledger: Ledger) -> None:
    job_id = await accepted(ledger)
    answers = await ledger.claim([job_id] * 20, consumer="c", lease_ms=15_000)
    assert [type(answer) for answer in answers].count(Claim) == 1
    assert {answer.reason for answer in answers if isinstance(answer, Refusal)} == {"sending"}


async def test_an_unknown_job_cannot_be_claimed(ledger: Ledger) -> None:
    (answer,) = await ledger.claim([new_job_id()], consumer="c", lease_ms=15_000)
    assert isinstance(answer, Refusal)
    assert answer.reason == "unknown"


async def test_a_finished_job_cannot_be_claimed(ledger: Ledger) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    assert await complete(ledger, claim, SENT)
    (answer,) = await ledger.claim([claim.job.id], consumer="c", lease_ms=15_000)
    assert isinstance(answer, Refusal)
    assert answer.reason == "sent"


async def test_a_deferred_job_waits_for_its_time(ledger: Ledger, store: redis.Redis) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    assert await complete(ledger, claim, deferred(60_000))
    assert await sweep(ledger) == []
    (answer,) = await ledger.claim([claim.job.id], consumer="c", lease_ms=15_000)
    assert isinstance(answer, Refusal)
    assert answer.reason == "deferred"
    make_due(store, claim.job.id)
    assert await sweep(ledger) == [claim.job.id]
    again = await claimed(ledger, claim.job.id)
    assert (again.fence, again.attempt) == (2, 2)
    assert again.job.recipients[0].status is RecipientStatus.DEFERRED


async def test_a_lost_doorbell_is_made_good_once(ledger: Ledger) -> None:
    job_id = await accepted(ledger, grace_ms=0)
    assert await sweep(ledger) == [job_id]
    assert await sweep(ledger) == []


async def test_a_stale_consumer_can_do_nothing(ledger: Ledger, store: redis.Redis) -> None:
    stale = await claimed(ledger, await accepted(ledger))
    make_due(store, stale.job.id)
    assert await sweep(ledger) == [stale.job.id]
    assert not await ledger.mark(stale.job.id, stale.fence, lease_ms=15_000)
    fresh = await claimed(ledger, stale.job.id)
    assert not await ledger.mark(stale.job.id, stale.fence, lease_ms=15_000)
    assert not await complete(ledger, stale, SENT)
    assert await ledger.renew({stale.job.id: stale.fence}, consumer="c1", lease_ms=15_000) == [
        stale.job.id
    ]
    assert await status(ledger, stale.job.id) is Status.SENDING
    assert await complete(ledger, fresh, SENT)


async def test_a_consumer_that_was_late_may_complete_while_nobody_took_over(
    ledger: Ledger, store: redis.Redis
) -> None:
    late = await claimed(ledger, await accepted(ledger))
    assert await ledger.mark(late.job.id, late.fence, lease_ms=15_000)
    make_due(store, late.job.id)
    assert await sweep(ledger) == [late.job.id]
    assert await complete(ledger, late, SENT)
    assert await status(ledger, late.job.id) is Status.SENT


async def test_completing_twice_is_completing_once(ledger: Ledger) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    assert await complete(ledger, claim, SENT)
    assert await complete(ledger, claim, SENT)
    record = await ledger.read(claim.job.id)
    assert record is not None
    assert len(record.events) == 2
    assert (await ledger.census()).counts[Status.SENT] == 1
    assert not await complete(ledger, claim, deferred(1))


async def test_renewing_keeps_a_lease(ledger: Ledger, store: redis.Redis) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    make_due(store, claim.job.id)
    assert await ledger.renew({claim.job.id: claim.fence}, consumer="c1", lease_ms=15_000) == []
    assert await sweep(ledger) == []


async def test_an_expired_lease_before_the_mark_is_provably_unsent(
    ledger: Ledger, store: redis.Redis
) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    make_due(store, claim.job.id)
    swept = await ledger.reconcile(limit=10, grace_ms=1, policy="hold", retention_ms=1000)
    assert swept.ready == swept.expired == (claim.job.id,)
    assert swept.ambiguous == ()
    record = await ledger.read(claim.job.id)
    assert record is not None
    assert record.events[-1].name == "lease_expired"


async def test_an_expired_lease_after_the_mark_is_ambiguous(ledger: Ledger, store: redis.Redis) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    await ledger.mark(claim.job.id, claim.fence, lease_ms=15_000)
    make_due(store, claim.job.id)
    swept = await ledger.reconcile(limit=10, grace_ms=1, policy="resend", retention_ms=1000)
    assert swept.ready == swept.ambiguous == (claim.job.id,)
    record = await ledger.read(claim.job.id)
    assert record is not None
    assert record.status is Status.QUEUED
    assert (record.events[-1].name, record.events[-1].details) == ("ambiguous", {"policy": "resend"})


async def test_held_jobs_keep_their_body_and_say_uncertain(ledger: Ledger, store: redis.Redis) -> None:
    job = Job(
        new_job_id(),
        Body("welcome", {"name": "Ada"}),
        (Recipient("a@example.org", RecipientStatus.SENT, "250 taken"), Recipient("b@example.org")),
    )
    await ledger.accept(job, grace_ms=0)
    claim = await claimed(ledger, job.id)
    await ledger.mark(job.id, claim.fence, lease_ms=15_000)
    make_due(store, job.id)
    swept = await ledger.reconcile(limit=10, grace_ms=1, policy="hold", retention_ms=60_000)
    assert (swept.ready, swept.ambiguous) == ((), (job.id,))
    record = await ledger.read(job.id)
    assert record is not None
    assert record.status is Status.UNCERTAIN
    assert [recipient.status for recipient in record.recipients] == ["sent", "uncertain"]
    assert store.hexists(f"mail:{{0}}:job:{job.id}", "body")
    assert store.pttl(f"mail:{{0}}:job:{job.id}") > 0


async def test_who_held_the_claim_may_settle_what_was_held_back(
    ledger: Ledger, store: redis.Redis
) -> None:
    """The reply came late, but it came: nobody else sent the job."""
    for completion, end in ((SENT, Status.SENT), (deferred(60_000), Status.DEFERRED)):
        claim = await claimed(ledger, await accepted(ledger))
        await ledger.mark(claim.job.id, claim.fence, lease_ms=15_000)
        make_due(store, claim.job.id)
        await ledger.reconcile(limit=10, grace_ms=1, policy="hold", retention_ms=60_000)
        assert await status(ledger, claim.job.id) is Status.UNCERTAIN
        assert await complete(ledger, claim, completion)
        assert await status(ledger, claim.job.id) is end
        ttl = store.pttl(f"mail:{{0}}:job:{claim.job.id}")
        assert (ttl > 0) == (end is Status.SENT)
        assert (store.zscore("mail:{0}:due", claim.job.id) is None) == (end is Status.SENT)


async def test_a_sweep_that_waited_in_a_buffer_takes_nothing(
    ledger: Ledger, server: LedgerServer, store: redis.Redis
) -> None:
    """The server hung; when it wakes up, living consumers must be able to renew first."""
    claim = await claimed(ledger, await accepted(ledger))
    make_due(store, claim.job.id)
    impatient = Ledger(server.url, reply_seconds=1)
    await impatient.probe()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LedgerUnavailableError):
        await impatient.reconcile(limit=10, grace_ms=1, policy="hold", retention_ms=1000)
    server.process.send_signal(signal.SIGCONT)
    await impatient.close()
    assert await ledger.renew({claim.job.id: claim.fence}, consumer="c1", lease_ms=15_000) == []
    assert await status(ledger, claim.job.id) is Status.SENDING


async def test_counts_of_a_newer_version_are_passed_over(ledger: Ledger, store: redis.Redis) -> None:
    store.hset("mail:{0}:counts", "bounced", 3)
    assert set((await ledger.census()).counts) == set(Status)


async def test_a_due_entry_without_a_job_is_reported(ledger: Ledger, store: redis.Redis) -> None:
    job_id = await accepted(ledger)
    store.delete(f"mail:{{0}}:job:{job_id}")
    make_due(store, job_id)
    swept = await ledger.reconcile(limit=10, grace_ms=1, policy="resend", retention_ms=1000)
    assert swept.unknown == (job_id,)
    assert store.zcard("mail:{0}:due") == 0


async def test_the_next_due_time_is_told(ledger: Ledger) -> None:
    assert (
        await ledger.reconcile(limit=1, grace_ms=1, policy="resend", retention_ms=1)
    ).next_due_ms is None
    await accepted(ledger, grace_ms=5_000)
    swept = await ledger.reconcile(limit=1, grace_ms=1, policy="resend", retention_ms=1)
    assert swept.next_due_ms is not None
    assert 4_000 < swept.next_due_ms <= 5_000


async def test_another_version_of_the_wire_form_is_put_aside(ledger: Ledger, store: redis.Redis) -> None:
    job_id = await accepted(ledger)
    store.hset(f"mail:{{0}}:job:{job_id}", "body", '{"v":2}')
    (answer,) = await ledger.claim([job_id], consumer="c", lease_ms=15_000)
    assert isinstance(answer, Unreadable)
    completion = Completion(Status.DEFERRED, None, 1000, {"event": "deferred"})
    assert await ledger.complete(job_id, answer.fence, completion, retention_ms=1)
    record = await ledger.read(job_id)
    assert record is not None
    assert record.recipients == (Recipient("ada@example.org"),)


async def test_the_timeline_is_bounded(ledger: Ledger, store: redis.Redis) -> None:
    job_id = await accepted(ledger)
    for _ in range(200):
        claim = await claimed(ledger, job_id)
        await complete(ledger, claim, Completion(Status.QUEUED, None, 0, {"event": "given_back"}))
    record = await ledger.read(job_id)
    assert record is not None
    assert record.attempts == 200
    assert len(cast(str, store.hget(f"mail:{{0}}:job:{job_id}", "events"))) <= 8192
    assert record.events[-1].name == "given_back"


async def test_an_illegal_move_is_refused_by_the_ledger_itself(ledger: Ledger) -> None:
    claim = await claimed(ledger, await accepted(ledger))
    illegal = Completion(Status.SCHEDULED, None, 1000, {"event": "x"})
    with pytest.raises(LedgerUnavailableError, match="illegal transition from sending to scheduled"):
        await complete(ledger, claim, illegal)
    assert await status(ledger, claim.job.id) is Status.SENDING


class TestIdempotency:
    FIRST = Idempotency("k" * 64, "f" * 64)

    async def test_the_same_request_gets_the_first_answer(self, ledger: Ledger) -> None:
        first = await ledger.accept(new_job(), grace_ms=1, idempotency=self.FIRST)
        again = await ledger.accept(new_job(), grace_ms=1, idempotency=self.FIRST)
        assert (first.replayed, again.replayed) == (False, True)
        assert first.job_id == again.job_id

    async def test_another_request_is_a_conflict(self, ledger: Ledger) -> None:
        await ledger.accept(new_job(), grace_ms=1, idempotency=self.FIRST)
        with pytest.raises(IdempotencyConflictError):
            await ledger.accept(new_job(), grace_ms=1, idempotency=Idempotency("k" * 64, "g" * 64))

    async def test_a_hundred_at_once_make_one_job(self, ledger: Ledger, store: redis.Redis) -> None:
        answers = await asyncio.gather(
            *(ledger.accept(new_job(), grace_ms=1, idempotency=self.FIRST) for _ in range(100))
        )
        assert len({answer.job_id for answer in answers}) == 1
        assert [answer.replayed for answer in answers].count(False) == 1
        assert len(list(store.scan_iter("mail:*:job:*"))) == 1

    async def test_keys_are_kept_for_a_day(self, ledger: Ledger, store: redis.Redis) -> None:
        await ledger.accept(new_job(), grace_ms=1, idempotency=self.FIRST)
        day = 24 * 3600
        assert day - 60 < store.ttl("mail:{0}:idem:" + "k" * 64) <= day


class TestKeyring:
    async def test_a_key_is_found_listed_and_revoked(self, ledger: Ledger, store: redis.Redis) -> None:
        new = await ledger.keyring.create("shop")
        assert new.text.startswith(f"ae_{new.key.id}_")
        assert await ledger.keyring.find(new.key.id) == new.key
        assert await ledger.keyring.list() == [new.key]
        secret = new.text.rpartition("_")[2]
        assert secret not in str(store.hgetall("mail:keys"))
        assert await ledger.keyring.revoke(new.key.id)
        assert not await ledger.keyring.revoke(new.key.id)
        assert await ledger.keyring.find(new.key.id) is None


class TestResolve:
    async def uncertain(self, ledger: Ledger, store: redis.Redis) -> str:
        claim = await claimed(ledger, await accepted(ledger))
        await ledger.mark(claim.job.id, claim.fence, lease_ms=15_000)
        make_due(store, claim.job.id)
        await ledger.reconcile(limit=10, grace_ms=1, policy="hold", retention_ms=60_000)
        return claim.job.id

    async def test_a_person_says_it_was_sent(self, ledger: Ledger, store: redis.Redis) -> None:
        job_id = await self.uncertain(ledger, store)
        assert await ledger.resolve(job_id, "sent", retention_ms=60_000) == "resolved"
        record = await ledger.read(job_id)
        assert record is not None
        assert record.status is Status.SENT
        assert record.recipients[0].status is RecipientStatus.SENT
        assert record.events[-1].details == {"decision": "sent"}
        assert await ledger.resolve(job_id, "resend", retention_ms=60_000) == "sent"

    async def test_a_person_says_it_must_go_again(self, ledger: Ledger, store: redis.Redis) -> None:
        job_id = await self.uncertain(ledger, store)
        assert await ledger.resolve(job_id, "resend", retention_ms=60_000) == "resolved"
        assert store.pttl(f"mail:{{0}}:job:{job_id}") == -1
        again = await claimed(ledger, job_id)
        assert again.job.recipients[0].status is RecipientStatus.DEFERRED
        assert await complete(ledger, again, SENT)

    async def test_nobody_resolves_what_is_not_uncertain(self, ledger: Ledger) -> None:
        assert await ledger.resolve(await accepted(ledger), "sent", retention_ms=1) == "queued"
        assert await ledger.resolve(new_job_id(), "sent", retention_ms=1) == "unknown"


async def test_a_full_backlog_takes_no_more_but_repeats_its_answers(ledger: Ledger) -> None:
    first = Idempotency("k" * 64, "f" * 64)
    job_id = (await ledger.accept(new_job(), grace_ms=1, most_pending=2, idempotency=first)).job_id
    await ledger.accept(new_job(), grace_ms=1, most_pending=2)
    other = Idempotency("o" * 64, "f" * 64)
    for idempotency in (None, other):
        with pytest.raises(BacklogFullError):
            await ledger.accept(new_job(), grace_ms=1, most_pending=2, idempotency=idempotency)
    assert (await ledger.accept(new_job(), grace_ms=1, most_pending=2, idempotency=first)).replayed
    assert await complete(ledger, await claimed(ledger, job_id), SENT)
    assert not (await ledger.accept(new_job(), grace_ms=1, most_pending=2, idempotency=other)).replayed
