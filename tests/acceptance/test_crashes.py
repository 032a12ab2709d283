"""Whatever dies, nothing is lost; and mail is doubled only where SMTP leaves no choice."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPException

import pytest
import redis
from ledger_server import LedgerServer
from programs import Program, ask, wait_until
from relay import HANG, Relay
from system_under_test import System, metrics


def events(system: System, job_id: str) -> list[str]:
    return [event["event"] for event in system.job(job_id)["events"]]


def grown(items: Sequence[object], size: int) -> Callable[[], bool]:
    """Whether there are more than ``size`` by now."""
    return lambda: len(items) > size


def heard(relay: Relay, verb: str) -> bool:
    return any(command.startswith(verb) for command in relay.commands)


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_a_consumer_killed_before_the_mark_sent_nothing(system: System, step: str) -> None:
    system.start("service")
    system.relay.answers = {step: [HANG]}
    consumer = system.start("consumer")
    job_id = system.accept()
    wait_until(lambda: heard(system.relay, step))
    consumer.kill()
    system.relay.answers = {}
    system.start("consumer")
    system.wait_for(job_id, "sent")
    assert "lease_expired" in events(system, job_id)
    assert "ambiguous" not in events(system, job_id)
    assert len(system.relay.taken) == 1


def test_a_consumer_killed_after_the_dot_is_ambiguous_and_sends_again(system: System) -> None:
    system.start("service")
    system.relay.answers = {"CONTENT": [HANG]}
    consumer = system.start("consumer")
    job_id = system.accept()
    wait_until(lambda: system.relay.asked["CONTENT"])
    consumer.kill()
    system.relay.answers = {}
    other = system.start("consumer")
    job = system.wait_for(job_id, "sent")
    (ambiguous,) = [event for event in job["events"] if event["event"] == "ambiguous"]
    assert ambiguous["policy"] == "resend"
    assert len(system.relay.taken) == 1
    bind = other.settings["CONSUMER_METRICS_BIND"]
    assert metrics(bind)["async_email_ambiguous_attempts_total"] == 1
    assert metrics(bind)["async_email_leases_expired_total"] == 1


def test_a_consumer_killed_after_the_dot_is_held_where_that_is_the_policy(system: System) -> None:
    system.settings["AMBIGUOUS_POLICY"] = "hold"
    system.start("service")
    system.relay.answers = {"CONTENT": [HANG]}
    consumer = system.start("consumer")
    job_id = system.accept()
    wait_until(lambda: system.relay.asked["CONTENT"])
    consumer.kill()
    system.relay.answers = {}
    system.start("consumer")
    job = system.wait_for(job_id, "uncertain")
    assert job["recipients"][0]["status"] == "uncertain"
    assert not system.relay.taken


def test_a_stopped_consumer_that_wakes_up_sends_nothing(system: System) -> None:
    """Its fence is stale, and the mark notices before the content."""
    system.start("service")
    system.relay.answers = {"RCPT": [HANG]}
    stale = system.start("consumer")
    job_id = system.accept()
    wait_until(lambda: heard(system.relay, "RCPT"))
    stale.process.send_signal(signal.SIGSTOP)
    system.relay.answers = {}
    system.start("consumer")
    system.wait_for(job_id, "sent")
    # The relay answers the sleeper's RCPT at last.
    system.relay.let_go()
    stale.process.send_signal(signal.SIGCONT)
    wait_until(lambda: [line for line in stale.logged("claim_lost") if line["step"] == "mark"])
    assert len(system.relay.taken) == 1
    assert system.job(job_id)["status"] == "sent"


def test_a_killed_service_keeps_its_promises(system: System) -> None:
    service = system.start("service")
    promised: list[str] = []

    def post_until_it_dies() -> None:
        while True:
            try:
                promised.append(system.accept())
            except (OSError, HTTPException):
                return

    poster = threading.Thread(target=post_until_it_dies)
    poster.start()
    wait_until(lambda: len(promised) > 100)
    service.kill()
    poster.join()
    service.start()
    wait_until(system.ready)
    system.start("consumer")
    for job_id in promised:
        system.wait_for(job_id, "sent")
    senders = {taken.content.split(b"Message-ID: <")[1][:36].decode() for taken in system.relay.taken}
    assert senders >= set(promised)
    assert len(system.relay.taken) == len(senders)


def test_a_killed_ledger_keeps_every_202(system: System, server: LedgerServer) -> None:
    """Both programs come back by themselves."""
    service, consumer = system.start("service"), system.start("consumer")
    promised: list[str] = []
    refused: list[int] = []
    done = threading.Event()

    def post() -> None:
        while not done.is_set():
            answer = system.post()
            if answer.status == 202:
                promised.append(answer.json["job_id"])
            else:
                refused.append(answer.status)

    poster = threading.Thread(target=post)
    poster.start()
    for _ in range(3):
        so_far = len(promised)
        wait_until(grown(promised, so_far + 50))
        server.kill()
        so_far = len(refused)
        wait_until(grown(refused, so_far))
        server.start()
        back = time.monotonic()
        so_far = len(promised)
        wait_until(grown(promised, so_far), 5)
        assert time.monotonic() - back < 5
    done.set()
    poster.join()
    assert set(refused) == {503}
    for job_id in promised:
        system.wait_for(job_id, "sent")
    assert service.process.poll() is None
    assert consumer.process.poll() is None


def test_a_deleted_queue_loses_nothing(system: System, store: redis.Redis) -> None:
    system.start("service")
    ids = [system.accept() for _ in range(20)]
    wait_until(lambda: store.exists("async-email.doorbells"))
    store.delete("async-email.doorbells", "_kombu.binding.async-email")
    system.start("consumer")
    for job_id in ids:
        system.wait_for(job_id, "sent")
    assert len(system.relay.taken) == 20


def test_without_its_broker_the_system_is_only_slower(system: System) -> None:
    system.settings["BROKER_URL"] = "redis://127.0.0.1:1/0"
    system.start("service")
    consumer = Program(
        "consumer", system.folder, {**system.settings, "CONSUMER_METRICS_BIND": "127.0.0.1:0"}
    )
    system.programs.append(consumer)
    ready = ask(f"{system.api}/readyz")
    assert ready.status == 200
    assert ready.json["checks"]["broker"].startswith("down")
    system.wait_for(system.accept(), "sent")


def test_a_relay_that_speaks_latin_1_gets_one_mail(system: System) -> None:
    system.relay.answers = {"CONTENT": ["250 accept\udce9"]}
    system.start("service")
    system.start("consumer")
    job = system.wait_for(system.accept(), "sent")
    assert job["recipients"][0]["reply"].startswith("250 accept")
    assert len(system.relay.taken) == 1


def test_a_consumer_that_slept_past_its_lease_sends_once_and_goes_on(system: System) -> None:
    """Its own reconciler must not take its jobs for those of a dead consumer."""
    system.start("service")
    system.relay.answers = {"CONTENT": [HANG]}
    consumer = system.start("consumer", CONSUMER_CONCURRENCY="2")
    bind = consumer.settings["CONSUMER_METRICS_BIND"]
    job_id = system.accept()
    wait_until(lambda: system.relay.asked["CONTENT"])
    consumer.process.send_signal(signal.SIGSTOP)
    slept = time.monotonic() + 3.0  # longer than the lease of 2 s
    wait_until(lambda: time.monotonic() > slept)
    consumer.process.send_signal(signal.SIGCONT)
    system.relay.answers = {}
    system.relay.let_go()
    system.wait_for(job_id, "sent")
    for later in [system.accept() for _ in range(10)]:
        system.wait_for(later, "sent")
    assert len(system.relay.taken) == 11
    wait_until(lambda: metrics(bind)["async_email_mails_in_flight"] == 0)


def test_a_read_only_ledger_doubles_nothing(system: System, store: redis.Redis) -> None:
    """Leases run out while nobody can renew them; the living get time to do so afterwards."""
    system.start("service")
    system.relay.answers = {"CONTENT": [HANG]}
    consumers = [system.start("consumer"), system.start("consumer")]
    ids = [system.accept() for _ in range(5)]
    wait_until(lambda: system.relay.asked["CONTENT"] == 5)
    store.replicaof("127.0.0.1", "1")
    wait_until(lambda: all(consumer.logged("leases_not_renewed") for consumer in consumers))
    over = time.monotonic() + 3.0
    wait_until(lambda: time.monotonic() > over)
    store.replicaof("NO", "ONE")
    settled = time.monotonic() + 2.0
    wait_until(lambda: time.monotonic() > settled)
    system.relay.answers = {}
    system.relay.let_go()
    for job_id in ids:
        system.wait_for(job_id, "sent")
    assert len(system.relay.taken) == 5


class TestStopping:
    def test_it_ends_in_time_without_the_ledger(self, system: System, server: LedgerServer) -> None:
        system.start("service")
        system.relay.answers = {"RCPT": [HANG]}
        consumer = system.start("consumer", DRAIN_SECONDS="2")
        job_id = system.accept()
        wait_until(lambda: heard(system.relay, "RCPT"))
        server.kill()
        started = time.monotonic()
        assert consumer.stop() == 0
        assert time.monotonic() - started < 15
        server.start()
        system.relay.answers = {}
        system.start("consumer")
        system.wait_for(job_id, "sent")

    def test_it_gives_back_at_once_while_it_waits_for_the_rest(self, system: System) -> None:
        system.settings |= {"LEASE_SECONDS": "60", "RECONCILE_SECONDS": "60"}
        system.start("service")
        system.relay.answers = {"CONTENT": [HANG, "250 taken"]}
        consumer = system.start("consumer", SMTP_CONNECTIONS="1")
        handed_over = system.accept()
        wait_until(lambda: system.relay.asked["CONTENT"])
        waiting = system.accept()
        wait_until(lambda: system.job(waiting)["status"] == "sending")
        other = system.start("consumer")
        consumer.process.terminate()
        system.wait_for(waiting, "sent", seconds=10)
        assert system.job(handed_over)["status"] == "sending"
        assert consumer.process.poll() is None
        system.relay.let_go()
        assert consumer.process.wait(20) == 0
        assert system.job(handed_over)["status"] == "sent"
        assert other.process.poll() is None

    def test_a_stopping_consumer_waits_for_what_it_handed_over(self, system: System) -> None:
        system.start("service")
        system.relay.answers = {"CONTENT": [HANG, "250 taken"]}
        consumer = system.start("consumer")
        job_id = system.accept()
        wait_until(lambda: system.relay.asked["CONTENT"])
        consumer.process.terminate()
        wait_until(lambda: consumer.logged("draining"))
        system.relay.let_go()
        assert consumer.process.wait(20) == 0
        job = system.job(job_id)
        assert job["status"] == "sent"
        assert job["attempts"] == 1

    def test_a_stopping_consumer_gives_back_what_it_did_not_hand_over(self, system: System) -> None:
        system.settings |= {"LEASE_SECONDS": "60", "RECONCILE_SECONDS": "60"}
        system.start("service")
        system.relay.answers = {"RCPT": [HANG]}
        consumer = system.start("consumer", CONSUMER_CONCURRENCY="3", SMTP_CONNECTIONS="2")
        ids = [system.accept() for _ in range(20)]
        wait_until(lambda: system.relay.commands.count("RCPT TO:<ada@example.org>") == 2)
        assert consumer.stop() == 0
        assert {system.job(job_id)["status"] for job_id in ids} == {"queued"}
        system.relay.answers = {}
        system.start("consumer")
        for job_id in ids:  # at once: neither a lease nor a sweep has to run out first
            system.wait_for(job_id, "sent", seconds=10)
        assert len(system.relay.taken) == 20

    def test_an_idle_consumer_stops_soon(self, system: System) -> None:
        consumer = system.start("consumer")
        started = time.monotonic()
        assert consumer.stop() == 0
        assert time.monotonic() - started < 5
        assert consumer.log()[-1]["event"] == "consumer_stopped"

    def test_a_stopping_service_answers_what_it_began(self, system: System) -> None:
        service = system.start("service")
        host, _, port = system.settings["API_BIND"].partition(":")
        body = b'{"name": "Ada", "email": "ada@example.org"}'
        head = (
            b"POST /start-job HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) != 0

        with ExitStack() as stack:
            begun = [
                stack.enter_context(socket.create_connection((host, int(port)), 20)) for _ in range(5)
            ]
            for connection in begun:
                connection.sendall(head + body[:10])
            assert ask(f"{system.api}/livez").status == 200  # those before it were read as well
            service.process.terminate()
            wait_until(refused)
            for connection in begun:
                connection.sendall(body[10:])
                assert connection.recv(4096).startswith(b"HTTP/1.1 202")
        assert service.process.wait(20) == 0
        assert service.log()[-1]["event"] == "service_stopped"
