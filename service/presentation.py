"""From the ledger's record to what ``GET /jobs/<id>`` answers. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from mailjob.lifecycle import FINISHED, Status
from mailjob.records import Census, Record


def accepted(job_id: str) -> dict[str, str]:
    return {"job_id": job_id, "status": Status.QUEUED.value, "status_url": f"/jobs/{job_id}"}


def consumers(census: Census) -> str:
    """In words, whether anybody is there to send."""
    if census.consumers:
        return "ok"
    if census.consumer_seen_ms is None:
        return "none was ever seen: start one"
    return f"none was seen for {census.consumer_seen_ms // 1000} s: start one"


def waits_for(record: Record, consumers_are: str | None) -> str | None:
    """Why a job that is not finished waits; None where it does not."""
    if record.status is Status.QUEUED:
        known = consumers_are in {None, "ok"}
        return "a consumer that is free" if known else f"a consumer; {consumers_are}"
    if record.status is Status.DEFERRED:
        replies = [recipient.reply for recipient in record.recipients if recipient.reply]
        return f"its next attempt; the last one ended with: {'; '.join(replies)}"
    if record.status is Status.SENDING:
        return "the relay"
    if record.status is Status.UNCERTAIN:
        return "a person: async-email resolve <id> --sent or --resend"
    return None


def present(record: Record, consumers_are: str | None = None) -> dict[str, object]:
    """Times are ISO 8601 in UTC with milliseconds; the timeline is oldest first."""
    waits_until = None if record.status is Status.SENDING else record.due_ms
    return {
        "job_id": record.job_id,
        "status": record.status.value,
        "created_at": _time(record.created_ms),
        "updated_at": _time(record.updated_ms),
        "attempts": record.attempts,
        "recipients": [
            {
                "address": recipient.address,
                "status": recipient.status.value,
                "reply": recipient.reply,
            }
            for recipient in record.recipients
        ],
        "next_attempt_at": None if waits_until is None else _time(waits_until),
        "finished": record.status in FINISHED,
        "waits_for": waits_for(record, consumers_are),
        "events": [
            {"at": _time(record.created_ms), "event": "accepted"},
            *(
                {"at": _time(event.at_ms), "event": event.name, **event.details}
                for event in record.events
            ),
        ],
    }


def _time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
