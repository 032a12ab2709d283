"""From the ledger's record to what ``GET /jobs/<id>`` answers. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from mailjob.lifecycle import FINISHED, Status
from mailjob.records import Record


def accepted(job_id: str) -> dict[str, str]:
    return {"job_id": job_id, "status": Status.QUEUED.value, "status_url": f"/jobs/{job_id}"}


def present(record: Record) -> dict[str, object]:
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
