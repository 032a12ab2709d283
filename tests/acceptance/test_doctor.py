"""The doctor, on a system that is well and on sick ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from system_under_test import System


def doctor(
    system: System, folder: Path, *flags: str, **settings: str
) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status, and the last finding by subject."""
    done = subprocess.run(
        [sys.executable, "-m", "console", "doctor", "--json", *flags],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **system.settings, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    findings = json.loads(done.stdout)
    assert all(finding["advice"] for finding in findings if finding["verdict"] == "failed")
    return done.returncode, {finding["subject"]: finding for finding in findings}


@pytest.fixture
def well(system: System) -> System:
    system.start("service")
    system.start("consumer")
    system.wait_for(system.accept(), "sent")
    return system


def test_a_system_that_is_well(well: System, tmp_path: Path) -> None:
    status, findings = doctor(well, tmp_path)
    verdicts = {subject: finding["verdict"] for subject, finding in findings.items()}
    assert status == 0, findings
    for subject in (
        "settings",
        "ledger",
        "durability",
        "clock",
        "consumers",
        "backlog",
        "broker",
        "relay",
    ):
        assert verdicts[subject] == "ok", findings[subject]


def test_it_is_readable(well: System, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "console", "doctor"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", **well.settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ok       ledger: Redis" in done.stdout


def test_without_a_ledger(system: System, tmp_path: Path) -> None:
    status, findings = doctor(system, tmp_path, REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
    assert status == 1
    assert findings["ledger"]["verdict"] == "failed"
    assert findings["broker"]["verdict"] == "warning"
    assert "hunter2" not in json.dumps(findings)


def test_without_a_consumer(system: System, tmp_path: Path) -> None:
    status, findings = doctor(system, tmp_path)
    assert status == 1
    assert "start one" in findings["consumers"]["advice"]


def test_a_ledger_that_forgets(well: System, tmp_path: Path, store: redis.Redis) -> None:
    store.config_set("appendfsync", "everysec")
    try:
        status, findings = doctor(well, tmp_path)
    finally:
        store.config_set("appendfsync", "always")
    assert status == 0
    assert findings["durability"]["verdict"] == "warning"
    assert "everysec" in findings["durability"]["words"]


def test_a_relay_that_is_not_there(well: System, tmp_path: Path) -> None:
    status, findings = doctor(well, tmp_path, SMTP_PORT="1")
    assert status == 1
    assert "SMTP_HOST" in findings["relay"]["advice"]


def test_a_test_mail_is_sent_on_request(well: System, tmp_path: Path) -> None:
    before = len(well.relay.taken)
    status, findings = doctor(well, tmp_path, "--send-to", "ada@example.net")
    assert status == 0, findings
    assert findings["test mail"]["verdict"] == "ok"
    (mail,) = well.relay.taken[before:]
    assert mail.recipients == ("ada@example.net",)
    assert "test mail" not in doctor(well, tmp_path)[1]
    assert len(well.relay.taken) == before + 1


def test_a_test_mail_that_is_refused(well: System, tmp_path: Path) -> None:
    status, findings = doctor(well, tmp_path, "--send-to", "rcpt-550+ada@example.net")
    assert status == 1
    assert "550" in findings["test mail"]["words"]


def test_wrong_settings(system: System, tmp_path: Path) -> None:
    status, findings = doctor(system, tmp_path, SMTP_PORT="many", API_BIND="nowhere")
    assert status == 1
    assert findings.keys() == {"settings"}


def test_a_password_that_everybody_can_read(system: System, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SMTP_PASSWORD=hunter2\n")
    (tmp_path / ".env").chmod(0o644)
    status, findings = doctor(system, tmp_path)
    assert status == 1
    assert findings["files"]["advice"] == "chmod 600 .env"
    (tmp_path / ".env").chmod(0o600)
    assert doctor(system, tmp_path)[1]["files"]["verdict"] == "ok"
