"""Kill each program at each named point: nothing is lost, and mail is doubled only in SMTP's window."""

from __future__ import annotations

from http.client import HTTPException

import pytest
from programs import wait_until
from system_under_test import System

from mailjob.failpoints import Failpoint

SERVICE = (Failpoint.BEFORE_ACCEPT, Failpoint.AFTER_ACCEPT)
AMBIGUOUS = {Failpoint.AFTER_MARK, Failpoint.MID_CONTENT, Failpoint.AFTER_DOT, Failpoint.AFTER_REPLY}
"""Between the mark and the completion: the only points after which a second copy may go out."""

TAKEN_BEFORE_DEATH = {Failpoint.AFTER_DOT, Failpoint.AFTER_REPLY}


def test_every_point_is_tried() -> None:
    consumer = [point for point in Failpoint if point not in SERVICE]
    assert len(consumer) == 8


@pytest.mark.parametrize("point", SERVICE)
def test_a_service_that_dies(system: System, point: Failpoint) -> None:
    service = system.start("service", FAILPOINT=f"{point}:3")
    system.start("consumer")
    promised = [system.accept(), system.accept()]
    with pytest.raises((OSError, HTTPException)):
        system.accept("Eve", "eve@example.org")
    assert service.process.wait(10) == -9
    system.start("service")
    for job_id in promised:
        system.wait_for(job_id, "sent")
    if point is Failpoint.AFTER_ACCEPT:  # durable, though nobody was told: it goes out within the grace
        wait_until(lambda: len(system.relay.taken) == 3)
    assert len(system.relay.taken) == (3 if point is Failpoint.AFTER_ACCEPT else 2)


@pytest.mark.parametrize("policy", ["resend", "hold"])
@pytest.mark.parametrize("point", [point for point in Failpoint if point not in SERVICE])
def test_a_consumer_that_dies(system: System, point: Failpoint, policy: str) -> None:
    system.settings["AMBIGUOUS_POLICY"] = policy
    system.start("service")
    consumer = system.start("consumer", FAILPOINT=f"{point}:2", CONSUMER_CONCURRENCY="1")
    first = system.accept()
    system.wait_for(first, "sent")
    job_id = system.accept()
    assert consumer.process.wait(20) == -9
    system.start("consumer")
    held = policy == "hold" and point in AMBIGUOUS
    job = system.wait_for(job_id, "uncertain" if held else "sent")
    copies = [taken for taken in system.relay.taken if job_id in taken.message_id]
    events = [event["event"] for event in job["events"]]
    assert ("ambiguous" in events) == (point in AMBIGUOUS)
    expected = (point in TAKEN_BEFORE_DEATH) + (not held)
    assert len(copies) == (1 if point is Failpoint.AFTER_COMPLETE else expected)
    assert len({copy.message_id for copy in copies}) <= 1
    assert system.job(first)["status"] == "sent"
