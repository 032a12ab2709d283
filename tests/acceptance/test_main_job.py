"""Post a job, poll it, find the mail: with the programs as processes."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import ssl
from collections import Counter
from email.message import EmailMessage

import pytest
import trustme
from ledger_server import LedgerServer
from programs import Program, ask, wait_until
from proxy import Proxy
from relay import Relay
from system_under_test import System, metrics


def read_mail(relay: Relay) -> EmailMessage:
    (taken,) = relay.taken
    return email.message_from_bytes(taken.content, policy=email.policy.default)


def log_lines(program: Program) -> list[dict[str, object]]:
    """Every line must be one JSON object with the promised fields."""
    lines = program.log()
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    return lines


def test_the_main_job(system: System) -> None:
    service, consumer = system.start("service"), system.start("consumer")
    answer = system.post("Žofie", "zofie@example.org", **{"X-Request-ID": "request-1"})
    assert answer.status == 202
    assert answer.headers["X-Request-ID"] == "request-1"
    job_id = answer.json["job_id"]
    job = system.wait_for(job_id, "sent")

    assert [event["event"] for event in job["events"]] == ["accepted", "sending", "sent"]
    assert job["events"][-1]["reply"] == "250 2.0.0 taken"
    assert job["attempts"] == 1
    assert job["next_attempt_at"] is None
    assert job["recipients"] == [
        {"address": "zofie@example.org", "status": "sent", "reply": "250 2.0.0 taken"}
    ]

    (taken,) = system.relay.taken
    assert (taken.sender, taken.recipients) == ("hello@example.org", ("zofie@example.org",))
    mail = read_mail(system.relay)
    assert mail["Subject"] == "Welcome, Žofie!"
    assert mail["Message-ID"] == f"<{job_id}@example.org>"
    text = mail.get_body(("plain",))
    assert text is not None
    assert "Hello Žofie," in text.get_content()

    api = metrics(system.settings["API_BIND"])
    assert api["async_email_jobs_accepted_total"] == 1
    assert api["async_email_jobs{status=sent}"] == 1
    assert api["async_email_http_request_duration_seconds_count{method=POST,route=/start-job}"] == 1
    other = metrics(consumer.settings["CONSUMER_METRICS_BIND"])
    assert other["async_email_jobs_finished_total{outcome=sent}"] == 1
    assert other["async_email_smtp_send_duration_seconds_count"] == 1
    assert other["async_email_job_end_to_end_seconds_count"] == 1

    (accessed,) = [line for line in log_lines(service) if line.get("route") == "/start-job"]
    assert accessed["job_id"] == job_id
    assert accessed["request_id"] == "request-1"
    (sent,) = [line for line in log_lines(consumer) if line["event"] == "job_sent"]
    assert (sent["job_id"], sent["attempt"]) == (job_id, 1)
    for program in (service, consumer):
        assert "zofie@example.org" not in program.log_file.read_text()
        assert program.stop() == 0


def test_mail_goes_out_without_waiting_for_the_reconciler(system: System) -> None:
    system.settings["RECONCILE_SECONDS"] = "60"
    system.start("service")
    system.start("consumer")
    system.wait_for(system.accept(), "sent", seconds=10)


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "CONTENT"])
def test_what_is_refused_fails_with_the_relays_words(system: System, step: str) -> None:
    system.relay.answers = {step: ["554 5.7.1 not here"]}
    system.start("service")
    system.start("consumer")
    job = system.wait_for(system.accept(), "failed")
    assert job["recipients"][0]["status"] == "failed"
    assert job["recipients"][0]["reply"] == "554 5.7.1 not here"
    assert job["events"][-1]["reply"] == "554 5.7.1 not here"


def test_what_is_deferred_is_tried_again(system: System) -> None:
    system.relay.answers = {"RCPT": ["450 greylisted", "450 greylisted", "250 ok"]}
    system.start("service")
    system.start("consumer")
    job_id = system.accept()
    job = system.wait_for(job_id, "sent")
    assert job["attempts"] == 3
    assert [event["event"] for event in job["events"]][1:] == [
        "sending",
        "deferred",
        "sending",
        "deferred",
        "sending",
        "sent",
    ]
    assert len(system.relay.taken) == 1


def test_a_deferred_job_says_until_when(system: System) -> None:
    system.settings["RETRY_SCHEDULE"] = "3600"
    system.relay.answers = {"RCPT": ["450 greylisted"]}
    system.start("service")
    system.start("consumer")
    job = system.wait_for(system.accept(), "deferred")
    assert job["next_attempt_at"] > job["updated_at"]
    assert job["recipients"][0]["reply"] == "450 greylisted"


def test_a_lifetime_ends(system: System) -> None:
    system.relay.answers = {"RCPT": ["450 greylisted"]}
    system.start("service")
    system.start("consumer", JOB_LIFETIME="1")
    job = system.wait_for(system.accept(), "failed")
    assert job["events"][-1]["reason"] == "the job's lifetime ran out"
    assert job["recipients"][0]["reply"] == "450 greylisted"


def test_a_relay_that_comes_late_gets_the_mail(system: System) -> None:
    system.settings["SMTP_PORT"] = "1"
    system.start("service")
    refused = system.start("consumer")
    job_id = system.accept()
    system.wait_for(job_id, "deferred")
    assert refused.stop() == 0
    system.settings["SMTP_PORT"] = str(system.relay.port)
    system.start("consumer")
    system.wait_for(job_id, "sent")


def test_a_relay_in_trouble_is_tried_with_one_mail_at_a_time(system: System) -> None:
    system.relay.answers = {"BANNER": ["421 busy", "421 busy", "421 busy", "220 relay"]}
    system.settings["RETRY_SCHEDULE"] = "3600"
    system.start("service")
    system.start("consumer")
    system.wait_for(system.accept(), "deferred")
    ids = [system.accept() for _ in range(30)]
    wait_until(lambda: len(system.relay.taken) == 28, 30)
    statuses = Counter(system.job(job_id)["status"] for job_id in ids)
    assert statuses == {"sent": 28, "deferred": 2}


def test_many_jobs_and_the_books_balance(system: System) -> None:
    system.start("service")
    consumer = system.start("consumer")
    ids = [system.accept(f"Name {number}", f"user{number}@example.org") for number in range(200)]
    for job_id in ids:
        system.wait_for(job_id, "sent")
    assert sorted(taken.recipients[0] for taken in system.relay.taken) == sorted(
        f"user{number}@example.org" for number in range(200)
    )
    counts = metrics(system.settings["API_BIND"])
    assert counts["async_email_jobs{status=sent}"] == counts["async_email_jobs"] == 200
    bind = consumer.settings["CONSUMER_METRICS_BIND"]
    assert metrics(bind)["async_email_jobs_finished_total{outcome=sent}"] == 200


def test_metrics_in_both_programs_are_text_prometheus_reads(system: System) -> None:
    system.start("service")
    consumer = system.start("consumer")
    for bind in (system.settings["API_BIND"], consumer.settings["CONSUMER_METRICS_BIND"]):
        answer = ask(f"http://{bind}/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert metrics(bind)["async_email_ledger_up"] == 1


def test_operators_replace_templates(system: System) -> None:
    templates = system.folder / "templates"
    templates.mkdir()
    (templates / "welcome.subject.txt").write_text("Ahoj {{ name }}")
    system.start("service")
    system.start("consumer", TEMPLATE_DIR=str(templates))
    system.wait_for(system.accept(), "sent")
    assert read_mail(system.relay)["Subject"] == "Ahoj Ada"


def test_a_broken_template_stops_the_consumer_at_once(system: System) -> None:
    (system.folder / "welcome.txt").write_text("{% if %}")
    settings = {**system.settings, "TEMPLATE_DIR": str(system.folder)}
    consumer = Program("consumer", system.folder, settings)
    assert consumer.process.wait(20) == 69
    assert "template welcome cannot be compiled" in consumer.log_file.read_text()


@pytest.mark.parametrize("name", ["service", "consumer"])
def test_wrong_settings_are_all_named(system: System, name: str) -> None:
    wrong = {"REDIS_URL": "nonsense", "LOG_LEVEL": "loud", "RECONCILE_SECONDS": "never"}
    program = Program(name, system.folder, {**system.settings, **wrong})
    assert program.process.wait(20) == 78
    text = program.log_file.read_text()
    for setting in wrong:
        assert f"{name}: {setting}=" in text


def test_a_taken_port_is_said_in_words(system: System) -> None:
    system.start("service")
    twin = Program("service", system.folder, system.settings)
    assert twin.process.wait(20) == 69
    assert f"cannot listen on API_BIND={system.settings['API_BIND']}" in twin.log_file.read_text()


def test_a_ledger_and_broker_under_tls(
    system: System, server: LedgerServer, server_tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    authority_file = system.folder / "authority.pem"
    authority.cert_pem.write_to_path(str(authority_file))
    with Proxy(server.socket, server_tls).serve() as proxy:
        system.settings |= {"REDIS_URL": f"rediss://localhost:{proxy.port}", "RECONCILE_SECONDS": "60"}
        trusting = {"SSL_CERT_FILE": str(authority_file)}
        service = system.start("service", **trusting)
        consumer = system.start("consumer", **trusting)
        system.wait_for(system.accept(), "sent", seconds=10)  # by its doorbell: both ends are connected
        for program in (service, consumer):
            assert program.stop() == 0
        distrusting = Program("service", system.folder, system.settings)
        system.programs.append(distrusting)
        wait_until(lambda: distrusting.log_file.exists() and distrusting.logged("ledger_unreachable"))
        wait_until(lambda: distrusting.logged("broker_lost"))
        assert "certificate verify failed" in distrusting.log_file.read_text().lower()
        assert not distrusting.logged("broker_connected")
        assert distrusting.stop() == 0


def test_a_websocket_is_turned_away(system: System) -> None:
    service = system.start("service")
    host, _, port = system.settings["API_BIND"].partition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(
            b"GET /start-job HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 403")
    assert not service.logged("request_failed")


def test_the_api_listens_on_a_unix_socket(system: System) -> None:
    socket_path = system.folder / "api.sock"
    program = Program("service", system.folder, {**system.settings, "API_BIND": f"unix:{socket_path}"})
    system.programs.append(program)
    wait_until(socket_path.exists)
    wait_until(lambda: program.logged("service_starting"))
    assert json.loads(unix_get(str(socket_path), "/livez")) == {"status": "alive"}


def unix_get(path: str, target: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        wait_until(lambda: connection.connect_ex(path) == 0)
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    return answer.partition(b"\r\n\r\n")[2]
