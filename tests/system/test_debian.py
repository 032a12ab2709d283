"""The main job against Debian's Redis and an authenticated STARTTLS Postfix."""

from __future__ import annotations

import email
import email.policy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
from ledger_server import LedgerServer
from postfix import PASSWORD, USER, Postfix, tool
from programs import ask, wait_until
from relay import Relay
from system_under_test import System, quick_settings


@pytest.fixture
def system(server: LedgerServer, postfix: Postfix, tmp_path: Path) -> Iterator[System]:
    relay = {
        "SMTP_TLS": "starttls",
        "SMTP_USERNAME": USER,
        "SMTP_PASSWORD": PASSWORD,
        "SSL_CERT_FILE": str(postfix.authority_file),
        "MAIL_FROM": "Shop <shop@example.org>",
    }
    settings = {**quick_settings(server.url, postfix.port), **relay}
    system = System(tmp_path, settings, postfix.sink)
    yield system
    for program in system.programs:
        program.stop()


def sent_ids(sink: Relay) -> list[str]:
    messages = [
        email.message_from_bytes(taken.content, policy=email.policy.default) for taken in sink.taken
    ]
    return [str(message["Message-ID"]).strip("<>").partition("@")[0] for message in messages]


def test_the_server_is_debians_redis(store: redis.Redis) -> None:
    info = cast(dict[str, object], store.info("server"))
    assert str(info["redis_version"]).startswith("7.0")
    assert "valkey_version" not in info


def test_the_main_job_through_postfix(system: System, postfix: Postfix) -> None:
    system.start("service")
    system.start("consumer")
    job_id = system.accept("Žofie", "zofie@example.org")
    job = system.wait_for(job_id, "sent")
    assert job["recipients"][0]["reply"].startswith("250 2.0.0 Ok: queued as ")
    wait_until(lambda: postfix.sink.taken)
    (taken,) = postfix.sink.taken
    assert taken.recipients == ("zofie@example.org",)
    message = email.message_from_bytes(taken.content, policy=email.policy.default)
    assert message["Subject"] == "Welcome, Žofie!"
    assert "with ESMTPSA" in message["Received"]
    assert message["Message-ID"] == f"<{job_id}@example.org>"


def test_postfix_refuses_and_defers(system: System) -> None:
    system.start("service")
    system.start("consumer")
    refused = system.accept("Eve", "refused@example.org")
    later = system.accept("Bob", "later@example.org")
    job = system.wait_for(refused, "failed")
    assert job["recipients"][0]["reply"].startswith("550 5.1.1 ")
    job = system.wait_for(later, "deferred")
    assert job["recipients"][0]["reply"].startswith("450 4.2.1 ")


def test_a_wrong_password_waits_for_the_operator(system: System, postfix: Postfix) -> None:
    system.start("service")
    wrong = system.start("consumer", SMTP_PASSWORD="wrong")
    job_id = system.accept()
    job = system.wait_for(job_id, "deferred")
    assert "535" in job["recipients"][0]["reply"]
    assert wrong.stop() == 0
    assert "wrong" not in wrong.log_file.read_text()
    system.start("consumer")
    system.wait_for(job_id, "sent")
    wait_until(lambda: sent_ids(postfix.sink) == [job_id])


def test_a_certificate_of_nobody_we_trust_sends_nothing(system: System, postfix: Postfix) -> None:
    system.start("service")
    system.start("consumer", SSL_CERT_FILE="/etc/ssl/certs/ca-certificates.crt")
    job = system.wait_for(system.accept(), "deferred")
    assert "certificate" in job["recipients"][0]["reply"].lower()
    assert not postfix.sink.taken


def test_a_thousand_mails_and_a_killed_redis(
    system: System, postfix: Postfix, server: LedgerServer
) -> None:
    system.start("service")
    system.start("consumer")
    ids = [system.accept("Ada", f"user{number}@example.org") for number in range(500)]
    server.kill()
    assert system.post().status == 503
    server.start()
    wait_until(lambda: system.post().status == 202)
    ids += [system.accept("Ada", f"user{number}@example.org") for number in range(500)]
    for job_id in ids:
        system.wait_for(job_id, "sent", seconds=60)
    wait_until(lambda: set(ids) <= set(sent_ids(postfix.sink)), 60)


def test_promtool_reads_the_metrics(system: System) -> None:
    system.start("service")
    consumer = system.start("consumer")
    system.wait_for(system.accept(), "sent")
    for bind in (system.settings["API_BIND"], consumer.settings["CONSUMER_METRICS_BIND"]):
        text = ask(f"http://{bind}/metrics").body
        checked = subprocess.run(
            [tool("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert checked.stdout + checked.stderr == b""


def test_the_firewall_of_the_guide_can_be_loaded() -> None:
    """Into a network of its own."""
    guide = (Path(__file__).parents[2] / "docs/deploy.md").read_text()
    rules = re.search(r"```\n(table inet filter .*?)```", guide, re.DOTALL)
    assert rules
    command = ["unshare", "--net", tool("nft"), "--file", "-"]
    subprocess.run(command, input=rules[1], text=True, check=True)
