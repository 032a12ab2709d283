"""What is wrong is said: to who asks, in the metrics, in the log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import redis
from ledger_server import LedgerServer
from programs import Program, ask, wait_until
from system_under_test import System, metrics


def test_a_job_says_why_it_waits(system: System) -> None:
    system.start("service")
    job_id = system.accept()
    assert system.job(job_id)["waits_for"] == "a consumer; none was ever seen: start one"
    assert ask(f"{system.api}/readyz").json["checks"]["consumers"] == "none was ever seen: start one"
    system.settings["RETRY_SCHEDULE"] = "3600"
    system.relay.answers = {"RCPT": ["450 greylisted"]}
    system.start("consumer")
    job = system.wait_for(job_id, "deferred")
    assert job["waits_for"] == "its next attempt; the last one ended with: 450 greylisted"
    assert ask(f"{system.api}/readyz").json["checks"]["consumers"] == "ok"
    assert metrics(system.settings["API_BIND"])["async_email_consumers"] == 1
    system.relay.answers = {}
    assert system.wait_for(system.accept(), "sent")["waits_for"] is None


def test_a_ledger_that_was_emptied_is_shouted_about(system: System, store: redis.Redis) -> None:
    service, consumer = system.start("service"), system.start("consumer")
    system.wait_for(system.accept(), "sent")
    for program in (service, consumer):
        wait_until(partial(knows_its_ledger, program))
    store.flushall()
    for program in (service, consumer):
        wait_until(partial(program.logged, "ledger_emptied"), 30)
        assert metrics(where(program))["async_email_ledger_emptied_total"] == 1
    system.wait_for(system.accept(), "sent")


def where(program: Program) -> str:
    return program.settings["API_BIND" if program.name == "service" else "CONSUMER_METRICS_BIND"]


def knows_its_ledger(program: Program) -> bool:
    return metrics(where(program))["async_email_ledger_age_seconds"] > 0


def test_a_ledger_that_is_not_durable_is_warned_of_once(
    system: System, server: LedgerServer, store: redis.Redis
) -> None:
    del server
    store.config_set("appendfsync", "everysec")
    try:
        service = system.start("service")
        wait_until(lambda: service.logged("ledger_not_durable"))
        (warning,) = service.logged("ledger_not_durable")
        assert warning["problems"] == ["appendfsync is everysec, not always"]
        assert metrics(system.settings["API_BIND"])["async_email_ledger_durable"] == 0
    finally:
        store.config_set("appendfsync", "always")


def test_a_service_without_its_ledger_says_so_once(system: System, tmp_path: Path) -> None:
    system.settings["REDIS_URL"] = f"unix://{tmp_path}/nobody.sock"
    service = Program("service", tmp_path, system.settings)
    system.programs.append(service)
    wait_until(lambda: service.log_file.exists() and service.logged("ledger_unreachable"))
    assert system.post().status == 503
    assert not system.ready()
