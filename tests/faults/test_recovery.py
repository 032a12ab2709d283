"""How long recovery takes with the settings as they come."""

from __future__ import annotations

import time

import pytest
import redis
from ledger_server import LedgerServer
from programs import wait_until
from relay import HANG
from system_under_test import System

TAKEN_OVER_SECONDS = 20.0
DOORBELL_SECONDS = 30.0
LEDGER_SECONDS = 5.0


@pytest.fixture
def default_system(system: System) -> System:
    for name in ("RECONCILE_SECONDS", "LEASE_SECONDS"):
        del system.settings[name]
    return system


@pytest.mark.parametrize("step", ["RCPT", "CONTENT"])
def test_jobs_of_a_killed_consumer_are_taken_over(default_system: System, step: str) -> None:
    system = default_system
    system.start("service")
    system.relay.answers = {step: [HANG]}
    consumer = system.start("consumer")
    system.start("consumer")
    ids = [system.accept() for _ in range(10)]
    wait_until(lambda: all(system.job(job_id)["status"] == "sending" for job_id in ids))
    holders = {job_id: system.job(job_id)["events"][1]["consumer"] for job_id in ids}
    (name,) = {line["consumer"] for line in consumer.logged("consumer_started")}
    orphans = [job_id for job_id, holder in holders.items() if holder == name]
    system.relay.answers = {}
    consumer.kill()
    killed = time.monotonic()
    for job_id in orphans:
        system.wait_for(job_id, "sent", seconds=TAKEN_OVER_SECONDS - (time.monotonic() - killed))
    system.relay.let_go()
    for job_id in ids:
        system.wait_for(job_id, "sent")


def test_a_lost_doorbell_delays_its_job(default_system: System, store: redis.Redis) -> None:
    system = default_system
    system.start("service")
    job_id = system.accept()
    accepted = time.monotonic()
    wait_until(lambda: store.llen("async-email.doorbells") == 1)
    store.delete("async-email.doorbells")
    system.start("consumer")
    system.wait_for(job_id, "sent", seconds=DOORBELL_SECONDS - (time.monotonic() - accepted))


def test_accepts_and_sends_go_on_when_the_ledger_is_back(
    default_system: System, server: LedgerServer
) -> None:
    system = default_system
    system.start("service")
    system.start("consumer")
    system.wait_for(system.accept(), "sent")
    server.kill()
    wait_until(lambda: system.post().status == 503)
    server.start()
    back = time.monotonic()
    wait_until(lambda: system.post().status == 202, LEDGER_SECONDS)
    system.wait_for(system.accept(), "sent", seconds=LEDGER_SECONDS - (time.monotonic() - back))
