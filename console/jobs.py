"""``async-email send`` and ``status``: asks the API as any client does, and shows the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from console.client import Client, refusal
from mailjob.errors import ConsoleError

WATCH_SECONDS: Final = 0.2
HEAD_LINES: Final = 8
"""What a job takes on the screen beside its timeline."""

_COLOURS: Final = {"sent": "green", "failed": "red", "uncertain": "red", "deferred": "yellow"}


def send_job(client: Client, name: str, email: str, idempotency_key: str | None) -> str:
    """The id of the accepted job. Raises ConsoleError with the API's reasons."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    answer = client.post("/start-job", {"name": name, "email": email}, headers)
    if answer.status != HTTPStatus.ACCEPTED:
        raise refusal(answer)
    return str(answer.document["job_id"])


def read_job(client: Client, job_id: str) -> dict[str, Any]:
    answer = client.get(f"/jobs/{job_id}")
    if answer.status != HTTPStatus.OK:
        raise refusal(answer)
    return dict(answer.document)


def watch_job(
    client: Client, job_id: str, screen: Console, *, seconds: float | None = None
) -> dict[str, Any]:
    """Show the job until it is finished, or ``seconds`` have passed. Gives its last state."""
    until = None if seconds is None else time.monotonic() + seconds
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        while True:
            job = read_job(client, job_id)
            live.update(picture(job, newest=max(screen.height - HEAD_LINES, 1)), refresh=True)
            if job["finished"] or (until is not None and time.monotonic() > until):
                return job
            time.sleep(WATCH_SECONDS)


def picture(job: Mapping[str, Any], newest: int = 0) -> RenderableType:
    """A job for people: its state, its recipients, its timeline, or only the ``newest`` of that."""
    status = Text(job["status"], style=f"bold {_COLOURS.get(job['status'], 'cyan')}")
    head = Table.grid(padding=(0, 2))
    head.add_row("job", Text(job["job_id"]))
    head.add_row("status", status)
    head.add_row("attempts", str(job["attempts"]))
    if job["next_attempt_at"]:
        head.add_row("next attempt", job["next_attempt_at"])
    for recipient in job["recipients"]:
        reply = f" - {recipient['reply']}" if recipient["reply"] else ""
        head.add_row("recipient", Text(f"{recipient['address']}: {recipient['status']}{reply}"))
    timeline = Table.grid(padding=(0, 2))
    for event in job["events"][-newest:]:
        details = {name: value for name, value in event.items() if name not in {"at", "event"}}
        words = ", ".join(f"{name}: {value}" for name, value in details.items())
        timeline.add_row(event["at"], Text(event["event"], style="bold"), Text(words))
    return Group(head, Text(), timeline)


def wait_until_ready(client: Client, alive: Callable[[], None], seconds: float) -> None:
    """Wait for the API to be ready. ``alive`` raises when there is nothing left to wait for."""
    until = time.monotonic() + seconds
    while True:
        alive()
        try:
            if client.get("/readyz").status == HTTPStatus.OK:
                return
        except ConsoleError:
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            raise ConsoleError(f"the API was not ready within {seconds:.0f} s")
        time.sleep(0.05)
