"""The typed face of the ledger: one method for each step of a job's life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mailjob.errors import (
    BacklogFullError,
    IdempotencyConflictError,
    LedgerUnavailableError,
    UnreadableJobError,
)
from mailjob.job import Job, decode_body, decode_recipients, encode_body, encode_recipients
from mailjob.ledger.group_commit import GroupCommit
from mailjob.ledger.keyring import Keyring
from mailjob.ledger.scripts import load_scripts
from mailjob.lifecycle import Status
from mailjob.records import (
    Accepted,
    Census,
    Claim,
    Completion,
    Event,
    Idempotency,
    Record,
    Refusal,
    Swept,
    Unreadable,
)

PARTITION = "0"
"""The hash tag of every key. More partitions can follow when one server is no longer enough."""

IDEMPOTENCY_MS = 24 * 3600 * 1000

_PREFIX = f"mail:{{{PARTITION}}}:"
_JOB = _PREFIX + "job:"
_DUE = _PREFIX + "due"
_COUNTS = _PREFIX + "counts"
_PROBE = _PREFIX + "probe"
_CONSUMERS = _PREFIX + "consumers"
_BIRTH = _PREFIX + "birth"

_LEASE_MS = 15_000
"""Consumers show that they live at least every third of their lease, and every few seconds."""


class Ledger:
    """Every method raises LedgerUnavailableError when the server cannot be reached or refuses.

    Then the step may or may not have been done, except where the server said no. Times are
    milliseconds. ``reply_seconds`` bounds each call.
    """

    def __init__(self, url: str, *, reply_seconds: float) -> None:
        self._reply_ms = int(reply_seconds * 1000)
        self._server_ahead_ms: int | None = None
        self._commit = GroupCommit(url, load_scripts(), reply_seconds=reply_seconds)
        self.keyring = Keyring(self._commit)

    async def close(self) -> None:
        await self._commit.close()

    async def accept(
        self,
        job: Job,
        *,
        grace_ms: int,
        most_pending: int = 10**9,
        idempotency: Idempotency | None = None,
    ) -> Accepted:
        """Write a new job; durable when this returns, as far as the server is set to sync.

        Raises IdempotencyConflictError when the key came before with another request, and
        BacklogFullError when ``most_pending`` jobs are unfinished already.
        """
        keys = [_JOB + job.id, _DUE, _COUNTS]
        arguments: list[bytes | str | int] = [
            job.id,
            encode_body(job.body),
            encode_recipients(job.recipients),
            grace_ms,
            most_pending,
        ]
        if idempotency is not None:
            keys.append(f"{_PREFIX}idem:{idempotency.key}")
            arguments += [idempotency.fingerprint, IDEMPOTENCY_MS]
        outcome, *rest = await self._commit.run("accept", keys, arguments)
        if outcome == b"conflict":
            raise IdempotencyConflictError(
                "this Idempotency-Key was used for another request in the last 24 hours"
            )
        if outcome == b"full":
            raise BacklogFullError(f"{most_pending} jobs are unfinished; no more are taken for now")
        return Accepted(job_id=rest[0].decode(), replayed=outcome == b"replayed")

    async def claim(
        self, job_ids: Sequence[str], *, consumer: str, lease_ms: int
    ) -> list[Claim | Refusal | Unreadable]:
        """Claim each of ``job_ids``, in one pipeline. The answers stand in the same order."""
        name = msgspec.json.encode(consumer)
        calls = [
            self._commit.run("claim", (_JOB + job_id, _DUE, _COUNTS), (job_id, lease_ms, name))
            for job_id in job_ids
        ]
        replies = await _all(calls)
        return [_claim(job_id, reply) for job_id, reply in zip(job_ids, replies, strict=True)]

    async def mark(self, job_id: str, fence: int, *, lease_ms: int) -> bool:
        """Note that the content goes out now. False: the claim is lost, send nothing."""
        return bool(await self._commit.run("mark", (_JOB + job_id, _DUE), (job_id, fence, lease_ms)))

    async def complete(
        self, job_id: str, fence: int, completion: Completion, *, retention_ms: int
    ) -> bool:
        """End the attempt. Safe to repeat. False: the claim is lost, and another one counts."""
        arguments = (
            job_id,
            fence,
            completion.status,
            b"" if completion.recipients is None else encode_recipients(completion.recipients),
            "" if completion.delay_ms is None else completion.delay_ms,
            retention_ms,
            _inside(completion.event),
        )
        return bool(await self._commit.run("complete", (_JOB + job_id, _DUE, _COUNTS), arguments))

    async def resolve(self, job_id: str, decision: str, *, retention_ms: int) -> str:
        """Settle an uncertain job: ``sent`` or ``resend``. Gives ``resolved``, or why it was not."""
        reply = await self._commit.run(
            "resolve", (_JOB + job_id, _DUE, _COUNTS), (job_id, decision, retention_ms)
        )
        return str(reply.decode())

    async def renew(self, claims: Mapping[str, int], *, consumer: str, lease_ms: int) -> list[str]:
        """Show that ``consumer`` lives, and extend the leases of its jobs (id to fence).

        Gives the ids whose claim is lost.
        """
        keys = [_DUE, _CONSUMERS, *(_JOB + job_id for job_id in claims)]
        arguments: list[str | int] = [consumer, lease_ms]
        for job_id, fence in claims.items():
            arguments += [job_id, fence]
        return [job_id.decode() for job_id in await self._commit.run("renew", keys, arguments)]

    async def reconcile(self, *, limit: int, grace_ms: int, policy: str, retention_ms: int) -> Swept:
        """Take up to ``limit`` due jobs that nobody works on.

        A call that reaches the server only after its caller gave up takes nothing.
        """
        ahead = self._server_ahead_ms
        # Some time before the caller gives up, so that the two can never overlap.
        not_after = "" if ahead is None else _monotonic_ms() + ahead + self._reply_ms * 9 // 10
        reply = await self._commit.run(
            "reconcile", (_DUE, _COUNTS), (_JOB, limit, grace_ms, policy, retention_ms, not_after)
        )
        now, ready, expired, ambiguous, unknown, next_due = reply
        self._server_ahead_ms = int(now) - _monotonic_ms()
        return Swept(
            ready=_texts(ready),
            expired=_texts(expired),
            ambiguous=_texts(ambiguous),
            unknown=_texts(unknown),
            next_due_ms=None if next_due < 0 else int(next_due),
        )

    async def read(self, job_id: str) -> Record | None:
        fields, score = await self._commit.run("read", (_JOB + job_id, _DUE), (job_id,))
        if not fields:
            return None
        stored: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))
        return Record(
            job_id=job_id,
            status=Status(stored[b"status"].decode()),
            created_ms=int(stored[b"created"]),
            updated_ms=int(stored[b"updated"]),
            attempts=int(stored.get(b"attempt", 0)),
            recipients=decode_recipients(stored[b"recipients"]),
            due_ms=None if score is None else int(float(score)),
            events=tuple(_event(line) for line in stored.get(b"events", b"").splitlines()),
        )

    async def census(self) -> Census:
        keys = (_DUE, _COUNTS, _CONSUMERS, _BIRTH)
        fields, overdue, consumers, seen, began, now = await self._commit.run(
            "census", keys, (_LEASE_MS,)
        )
        counts = dict.fromkeys(Status, 0)
        for name, number in zip(fields[::2], fields[1::2], strict=True):
            if name.decode() in counts:  # a newer version may know more statuses
                counts[Status(name.decode())] = int(number)
        return Census(
            counts=counts,
            oldest_due_age_ms=int(overdue),
            consumers=consumers,
            consumer_seen_ms=None if seen < 0 else seen,
            began_ms=began,
            age_ms=now - began,
        )

    async def durability(self) -> list[str]:
        """What keeps this server from holding what it was given, as sentences; none is well.

        A server that does not let us look is taken at its word.
        """
        problems = []
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        try:
            reply = await self._commit.call(("CONFIG", "GET", "*append*"))
            found = _pairs(reply) | _pairs(
                await self._commit.call(("CONFIG", "GET", "maxmemory-policy"))
            )
        except LedgerUnavailableError as error:
            if "NOPERM" in str(error) or "permission" in str(error):
                return []
            raise
        for name, value in wanted.items():
            if found.get(name, value) != value:
                problems.append(f"{name} is {found[name]}, not {value}")
        return problems

    async def server(self) -> tuple[float, str]:
        """The server's time in Unix seconds, and its version."""
        seconds, microseconds = await self._commit.call(("TIME",))
        info = (await self._commit.call(("INFO", "server"))).decode()
        version = info.partition("redis_version:")[2].split()[0]
        return int(seconds) + int(microseconds) / 1e6, version

    async def probe(self) -> None:
        """Prove that the ledger can be read and written."""
        now = await self._commit.run("probe", (_PROBE,), ())
        self._server_ahead_ms = int(now) - _monotonic_ms()


def _pairs(reply: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


async def _all(calls: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """The results of calls that left together; an error of one is raised when all are in."""
    await asyncio.wait(calls)
    return [call.result() for call in calls]


def _claim(job_id: str, reply: list[Any]) -> Claim | Refusal | Unreadable:
    if reply[0] != b"claimed":
        return Refusal(job_id, reply[0].decode())
    _, fence, attempt, created, now, body, recipients = reply
    age_ms = int(now) - int(created)
    try:
        job = Job(job_id, decode_body(body), decode_recipients(recipients))
    except UnreadableJobError as error:
        return Unreadable(job_id, fence, attempt, age_ms, str(error))
    return Claim(job=job, fence=fence, attempt=attempt, created_ms=int(created), age_ms=age_ms)


def _texts(values: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)


def _inside(event: Mapping[str, object]) -> bytes:
    """A JSON object without its braces: the script puts the time in front."""
    return msgspec.json.encode(event)[1:-1]


def _event(line: bytes) -> Event:
    details: dict[str, object] = msgspec.json.decode(line)
    at_ms, name = details.pop("at"), details.pop("event")
    if not isinstance(at_ms, int):
        raise LedgerUnavailableError(f"the ledger holds a timeline entry without a time: {name}")
    return Event(at_ms=at_ms, name=str(name), details=details)
