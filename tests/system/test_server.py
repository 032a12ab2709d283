"""The installer on a bare Debian 12 with systemd: killed, rebooted, upgraded, restored, removed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import UNITS, Load, Server, need_well, prepared, prometheus
from machine import machine
from programs import wait_until


def spoil(wheel: Path) -> None:
    """Make the API of this release end at once."""
    with zipfile.ZipFile(wheel) as old:
        files = {info: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(wheel, "w") as new:
        for info, content in files.items():
            new.writestr(
                info, b"raise SystemExit(1)\n" if info.filename == "service/__main__.py" else content
            )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with machine() as box, prepared(box, tmp_path_factory.mktemp("server")) as server:
        yield server


def test_install(server: Server) -> None:
    arguments = ("--env", "/srv/old.env")
    said = server.run("install", *arguments, "--dry-run")
    assert "would make the system user async-email" in said
    assert server.box.do("ls", "/opt").strip() == ""
    server.install_first(*arguments)
    assert "nothing to change" in server.run("install", *arguments)
    for unit in UNITS:
        assert server.active(unit)


def test_a_mail_goes_through(server: Server) -> None:
    server.start_sink()
    job_id = server.accept()
    server.wait_for_sent(job_id)
    assert server.mails() == 1


def test_only_nginx_is_reachable_from_outside(server: Server) -> None:
    listening = server.box.do("ss", "--listening", "--tcp", "--numeric", "--no-header").splitlines()
    places = {line.split()[3] for line in listening}
    outside = {place for place in places if not place.startswith(("127.", "[::1]"))}
    assert {place.rpartition(":")[2] for place in outside} == {"80"}
    for path in ("/metrics", "/livez", "/readyz"):
        status, kind, _ = server.ask(path)
        assert (status, kind) == (404, "application/problem+json")
    assert server.ask("/1/metrics", host="127.0.0.1:8080")[0] == 200
    assert server.ask("/jobs/unknown")[0] == 404


def test_no_secret_can_be_seen(server: Server) -> None:
    shown = server.box.do("systemctl", "show", *(f"{unit}.service" for unit in UNITS))
    environments = server.box.do("sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
    passwords = server.box.do("sh", "-c", "cat /etc/async-email/credentials/*-redis-url")
    secrets = [url.partition("@")[0].rpartition(":")[2] for url in passwords.split("redis://")[1:]]
    assert len(secrets) == 3
    for secret in [*secrets, "se cret"]:
        assert secret not in shown
        assert secret not in environments
        assert secret not in server.box.do("journalctl", "--no-pager")
    assert "se cret" not in server.box.do("cat", "/etc/async-email/.env")


def test_little_is_exposed(server: Server) -> None:
    server.need_little_exposed()


def test_the_log_can_be_queried(server: Server) -> None:
    programs = ("--identifier=async-email-api", "--identifier=async-email-consumer")
    lines = server.box.do("journalctl", *programs, "--output=json").splitlines()
    events = {json.loads(json.loads(line)["MESSAGE"])["event"] for line in lines}
    assert {"service_starting", "request", "consumer_started", "job_sent"} <= events


@pytest.mark.parametrize("unit", [*UNITS, "redis-server", "nginx"])
def test_a_killed_service_comes_back(server: Server, unit: str) -> None:
    before = server.mails()
    waiting = [server.accept() for _ in range(5)]
    server.box.do("systemctl", "kill", "--signal=KILL", unit)
    if unit == "nginx":  # Debian does not restart it by itself; that is not ours to change
        server.box.do("systemctl", "restart", "nginx")
    wait_until(lambda: server.active(unit), 15)
    wait_until(server.takes, 15)
    for job_id in [*waiting, server.accept()]:
        server.wait_for_sent(job_id)
    assert server.mails() >= before + 6


def test_the_doctor_finds_nothing_wrong(server: Server) -> None:
    findings = server.doctor()
    need_well(findings)
    for subject in ("units", "ledger", "durability", "broker", "consumers", "relay"):
        assert findings[subject]["verdict"] == "ok", findings[subject]
    assert findings["ports"]["verdict"] == "ok"
    before = server.mails()
    said = server.box.do("async-email", "doctor", "--send-to", "ada@example.org")
    assert "ok       test mail" in said
    assert server.mails() == before + 1


def test_a_stopped_redis_shows(server: Server, tmp_path: Path) -> None:
    with prometheus(server, tmp_path):
        wait_until(lambda: "AsyncEmailTargetDown" not in server.alerts(), 15)
        server.box.do("systemctl", "stop", "redis-server")
        try:
            wait_until(lambda: "AsyncEmailLedgerDown" in server.alerts(), 30)
            assert server.doctor()["ledger"]["verdict"] == "failed"
        finally:
            server.box.do("systemctl", "start", "redis-server")
        wait_until(lambda: "AsyncEmailLedgerDown" not in server.alerts(), 30)
    wait_until(server.takes, 15)
    server.wait_for_sent(server.accept())


def test_a_wrong_password_shows(server: Server, tmp_path: Path) -> None:
    password = server.box.folder / "etc/async-email/credentials/smtp-password"
    right = password.read_text()
    password.write_text("hunter2")
    server.box.do("systemctl", "restart", "async-email-consumer@1")
    waiting = server.accept()
    with prometheus(server, tmp_path):
        wait_until(lambda: "AsyncEmailRelayDown" in server.alerts(), 60)
    relay = server.doctor()["relay"]
    assert relay["verdict"] == "failed"
    assert "535" in relay["words"]
    assert "hunter2" not in json.dumps(relay)
    password.write_text(right)
    server.box.do("systemctl", "restart", "async-email-consumer@1")
    server.wait_for_sent(waiting)


def interrupt_restore(server: Server) -> None:
    """Kill it when the ledger is about to be put back."""
    command = ("/srv/async-email/run", "restore", "--wheels", "/srv/wheels", "/srv/backup")
    with subprocess.Popen(server.box.inside(*command), stdout=subprocess.PIPE, text=True) as restore:
        assert restore.stdout is not None
        assert any("put the ledger back" in line for line in restore.stdout)
        server.box.do("pkill", "--signal=KILL", "--full", "async-email restore")


def test_a_backup_lives_on_another_machine(server: Server, tmp_path: Path) -> None:
    done = server.accept()
    server.wait_for_sent(done)
    server.stop_sink()
    waiting = [server.accept() for _ in range(3)]
    load = Load(server)
    server.box.do("async-email", "backup", "/srv/backup")
    assert set(load.stop()) == {202}
    server.start_sink()
    assert server.box.do("stat", "--format=%a", "/srv/backup").strip() == "600"
    with machine() as box, prepared(box, tmp_path) as other:
        shutil.copy(server.box.folder / "srv/backup", box.folder / "srv/backup")
        box.do("redis-cli", "-n", "1", "set", "somebody", "else's")
        with pytest.raises(AssertionError, match="not empty"):
            other.run("restore", "/srv/backup")
        box.do("redis-cli", "-n", "1", "del", "somebody")
        interrupt_restore(other)
        with pytest.raises(AssertionError, match="run it again"):
            other.run("install")
        assert "run release" in other.run("restore", "/srv/backup")
        other.key = server.key
        other.start_sink()
        for job_id in waiting:
            other.wait_for_sent(job_id)
        assert '"status":"sent"' in other.ask(f"/jobs/{done}")[2]
        other.wait_for_sent(other.accept())
        for unit in UNITS:
            assert other.active(unit)
        assert "nothing to change" in other.run("upgrade")
        with pytest.raises(AssertionError, match="empty machine"):
            other.run("restore", "/srv/backup")
    for job_id in waiting:
        server.wait_for_sent(job_id)


def test_after_a_reboot_everything_goes_on(server: Server) -> None:
    server.stop_sink()
    before = server.mails()
    waiting = [server.accept() for _ in range(3)]
    server.box.shut_down()
    command = ["chroot", str(server.box.folder), "async-email", "backup", "/srv/cold-backup"]
    subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(server.box.folder / "srv/cold-backup") as saved:
        assert "ledger/appendonly.aof.manifest" in saved.getnames()
    server.box.boot()
    server.start_sink()
    wait_until(server.takes, 60)
    for job_id in waiting:
        server.wait_for_sent(job_id)
    assert server.mails() == before + 3


def test_there_can_be_more_and_fewer_instances(server: Server) -> None:
    assert "enable async-email-api@3.service" in server.run("install", "--services", "3")
    assert server.active("async-email-api@3")
    assert server.ask("/3/metrics", host="127.0.0.1:8080")[0] == 200
    assert "nothing to change" in server.run("install")  # as many as there are
    assert "no longer wanted" in server.run("install", "--services", "2")
    assert not server.active("async-email-api@3")
    assert "api-3.sock" not in server.box.do("cat", "/etc/nginx/sites-available/async-email.conf")
    server.wait_for_sent(server.accept())


def test_an_upgrade_under_load_fails_no_request(server: Server) -> None:
    wheels = server.box.folder / "srv/wheels"
    shutil.copy(next(wheels.glob("idna-*.whl")), wheels / "zz_not_needed-1.0-py3-none-any.whl")
    load = Load(server)
    said = server.run("upgrade")
    outcomes = load.stop()
    assert "run release" in said
    assert set(outcomes) == {202}
    assert sum(outcomes.values()) > 20
    assert "nothing to change" in server.run("install")


def test_an_upgrade_that_does_not_get_well_is_taken_back(server: Server) -> None:
    running = server.box.do("readlink", "/opt/async-email/current")
    spoil(next((server.box.folder / "srv/wheels").glob("async_email-*.whl")))
    load = Load(server)
    with pytest.raises(AssertionError, match="runs again"):
        server.run("upgrade")
    assert set(load.stop()) == {202}
    assert server.box.do("readlink", "/opt/async-email/current") == running
    server.wait_for_sent(server.accept())


def test_it_can_be_taken_away(server: Server) -> None:
    command = ("/srv/async-email/run", "uninstall")
    assert "would remove /opt/async-email" in server.box.do(*command, "--dry-run")
    server.box.do(*command)
    assert server.box.do("ls", "/opt").strip() == ""
    assert "service-redis-url" in server.box.do("ls", "/etc/async-email/credentials")
    server.box.do(*command, "--purge")
    assert server.box.do("ls", "/etc/async-email", check=False).endswith("No such file or directory\n")
    assert server.active("redis-server")
    assert "async-email" not in server.box.do("systemctl", "list-unit-files")
