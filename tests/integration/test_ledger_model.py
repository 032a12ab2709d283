"""Any order of steps, by any consumers: the ledger's books always balance."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from ledger_server import LedgerServer

from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.ledger import Ledger
from mailjob.lifecycle import FINISHED, RecipientStatus, Status
from mailjob.records import Claim, Completion

ENDINGS = st.sampled_from([Status.SENT, Status.FAILED, Status.DEFERRED, Status.UNCERTAIN, Status.QUEUED])


class Books(RuleBasedStateMachine):
    """Accepts, claims, marks, expiries, retries and completions, stale ones too, in any order."""

    server: LedgerServer

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ledger = Ledger(self.server.url, reply_seconds=30)
        self.store = self.server.client()
        self.ids: list[str] = []
        self.claims: list[Claim] = []

    @initialize()
    def begin(self) -> None:
        self.store.flushall()

    def teardown(self) -> None:
        self.runner.run(self.ledger.close())
        self.runner.close()
        self.store.close()

    @rule()
    def accept(self) -> None:
        job = Job(new_job_id(), Body("welcome", {}), (Recipient("ada@example.org"),))
        self.runner.run(self.ledger.accept(job, grace_ms=60_000))
        self.ids.append(job.id)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        if self.ids:
            job_id = data.draw(st.sampled_from(self.ids))
            (answer,) = self.runner.run(self.ledger.claim([job_id], consumer="c", lease_ms=60_000))
            if isinstance(answer, Claim):
                assert answer.fence > max(
                    (claim.fence for claim in self.claims if claim.job.id == job_id), default=0
                )
                self.claims.append(answer)

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims))
            if self.runner.run(self.ledger.mark(claim.job.id, claim.fence, lease_ms=60_000)):
                newest = max(c.fence for c in self.claims if c.job.id == claim.job.id)
                assert claim.fence == newest

    @rule(data=st.data(), ending=ENDINGS)
    def complete(self, data: st.DataObject, ending: Status) -> None:
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims))
            recipients = (Recipient("ada@example.org", RecipientStatus.SENT),)
            delay = None if ending in FINISHED else 60_000
            completion = Completion(ending, recipients, delay, {"event": ending.value})
            held = self.runner.run(
                self.ledger.complete(claim.job.id, claim.fence, completion, retention_ms=10**7)
            )
            newest = max(c.fence for c in self.claims if c.job.id == claim.job.id)
            assert not held or claim.fence == newest

    @rule(data=st.data(), policy=st.sampled_from(["resend", "hold"]))
    def time_passes(self, data: st.DataObject, policy: str) -> None:
        """Some unfinished jobs come due: leases, retries and graces run out."""
        for job_id in self.ids:
            if data.draw(st.booleans()):
                self.store.zadd("mail:{0}:due", {job_id: 1}, xx=True)
        self.runner.run(
            self.ledger.reconcile(limit=100, grace_ms=60_000, policy=policy, retention_ms=10**7)
        )

    @invariant()
    def every_unfinished_job_is_due_some_time(self) -> None:
        due: Any = self.store.zrange("mail:{0}:due", 0, -1)
        statuses = {
            job_id: Status(str(self.store.hget(f"mail:{{0}}:job:{job_id}", "status")))
            for job_id in self.ids
        }
        assert set(due) == {job_id for job_id, status in statuses.items() if status not in FINISHED}
        counts = self.runner.run(self.ledger.census()).counts
        for status in Status:
            assert counts[status] == list(statuses.values()).count(status)

    @invariant()
    def only_finished_jobs_are_forgotten(self) -> None:
        for job_id in self.ids:
            key = f"mail:{{0}}:job:{job_id}"
            finished = Status(str(self.store.hget(key, "status"))) in FINISHED
            ttl: Any = self.store.pttl(key)
            assert (ttl > 0) == finished


def test_the_books_balance(server: LedgerServer) -> None:
    Books.server = server
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
