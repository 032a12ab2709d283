"""Neighbours that go silent, fill up, or cannot keep up."""

from __future__ import annotations

import socket
import time

import redis
from ledger_server import LedgerServer
from programs import ask, wait_until
from proxy import Proxy
from system_under_test import System, metrics


def test_a_silent_ledger_connection_is_given_up(system: System, server: LedgerServer) -> None:
    with Proxy(server.socket).serve() as proxy:
        system.settings["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        system.start("service")
        system.start("consumer")
        system.wait_for(system.accept(), "sent")
        proxy.freeze()
        frozen = time.monotonic()
        answer = system.post()
        assert answer.status == 503
        assert time.monotonic() - frozen < 2.5
        job_id = system.accept()
        system.wait_for(job_id, "sent", seconds=60)
        # The doorbells' connections come back as well.
        wait_until(lambda: ask(f"{system.api}/readyz").json["checks"]["broker"] == "ok", 60)


def test_a_silent_relay_connection_is_given_up(system: System) -> None:
    with Proxy(system.relay.port).serve() as proxy:
        system.settings["SMTP_PORT"] = str(proxy.port)
        system.start("service")
        system.start("consumer")
        system.wait_for(system.accept(), "sent")
        proxy.freeze()
        waiting = system.accept()
        other = system.accept("Bob", "bob@example.org")
        system.wait_for(other, "sent", seconds=60)
        system.wait_for(waiting, "sent", seconds=60)
        assert len(system.relay.taken) == 3


def test_a_full_ledger_refuses_and_recovers(system: System, store: redis.Redis) -> None:
    system.start("service")
    system.start("consumer")
    system.relay.answers = {"RCPT": ["450 greylisted", "250 ok"]}
    deferred = system.accept()
    store.config_set("maxmemory", 1)
    try:
        assert {system.post().status for _ in range(20)} == {503}
        assert not system.ready()
    finally:
        store.config_set("maxmemory", 0)
    system.wait_for(deferred, "sent")
    system.wait_for(system.accept(), "sent")
    assert len(system.relay.taken) == 2


def test_a_slow_client_is_bounded(system: System) -> None:
    system.start("service")
    host, _, port = system.settings["API_BIND"].partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(
            b"POST /start-job HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    system.accept()


def test_a_backlog_multiplies_no_doorbells(system: System, store: redis.Redis) -> None:
    """Many sweeps pass while a slow relay works a backlog off."""
    system.settings |= {"RECONCILE_SECONDS": "0.05", "SMTP_CONNECTIONS": "1"}
    service = system.start("service")
    ids = [system.accept() for _ in range(300)]
    wait_until(lambda: metrics(service.settings["API_BIND"])["async_email_queue_depth"] > 0, 30)
    system.start("consumer")
    system.start("consumer")
    for job_id in ids:
        system.wait_for(job_id, "sent", seconds=60)
    assert store.llen("async-email.doorbells") == 0
    rung = metrics(service.settings["API_BIND"])["async_email_doorbells_total{result=rung}"]
    assert rung <= len(ids)
    assert len(system.relay.taken) == len(ids)
