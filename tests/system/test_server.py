"""The installer on a bare Debian 12 with systemd: installed, killed, rebooted, upgraded, removed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import PUBLIC_ADDRESS, Machine, machine, wheels
from programs import wait_until

SINK_PORT = 2525
ASK = """
import sys, json
from programs import ask
url, key, document = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}"} if key else {}
answer = ask(url, json.loads(document) or None, headers=headers)
print(json.dumps([answer.status, answer.headers["Content-Type"], answer.body.decode()]))
"""
TESTS = Path(__file__).parents[1]
OLD_ENV = f"""\
SMTP_HOST=127.0.0.1
SMTP_PORT={SINK_PORT}
SMTP_USERNAME=shop@example.org
SMTP_PASSWORD='se cret'
RETRY_SCHEDULE=3
"""
UNITS = ["async-email-api@1", "async-email-api@2", "async-email-consumer@1"]


class Server:
    """The machine with the system on it, and a relay beside it."""

    def __init__(self, box: Machine, folder: Path) -> None:
        self.box = box
        self.key = ""
        self._sink_log = folder / "sink.jsonl"
        self._sink: subprocess.Popen[bytes] | None = None

    def install(self, *arguments: str) -> str:
        return self.box.do("/srv/async-email/run", "install", "--wheels", "/srv/wheels", *arguments)

    def ask(
        self, path: str, document: object = None, host: str = PUBLIC_ADDRESS
    ) -> tuple[int, str, str]:
        """Status, content type and body of an answer."""
        command = self.box.beside("-c", ASK, f"http://{host}{path}", self.key, json.dumps(document))
        done = subprocess.run(
            command, env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True
        )
        status, kind, body = json.loads(done.stdout)
        return int(status), str(kind), str(body)

    def accept(self) -> str:
        status, _, body = self.ask("/start-job", {"name": "Ada", "email": "ada@example.org"})
        assert status == 202, body
        return str(json.loads(body)["job_id"])

    def takes(self) -> bool:
        """Whether the API answers through Nginx, and has its ledger."""
        return self.ask("/jobs/00000000-0000-7000-8000-000000000000")[0] == 404

    def wait_for_sent(self, job_id: str) -> None:
        wait_until(lambda: '"status":"sent"' in self.ask(f"/jobs/{job_id}")[2], 60)

    def mails(self) -> int:
        return len(self._sink_log.read_text().splitlines()) if self._sink_log.exists() else 0

    def start_sink(self) -> None:
        command = self.box.beside(str(TESTS / "sink_process.py"), str(SINK_PORT), str(self._sink_log))
        self._sink = subprocess.Popen(command, env={"PYTHONPATH": str(TESTS)})

    def stop_sink(self) -> None:
        if self._sink is not None:
            self._sink.terminate()
            self._sink.wait()

    def active(self, unit: str) -> bool:
        state = self.box.do("systemctl", "is-active", unit, check=False)
        return state.strip() == "active"


class Load:
    """Posts through Nginx, one request after the other, until stopped."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._outcomes: Counter[int] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> Counter[int]:
        self._stopping.set()
        self._thread.join()
        return self._outcomes

    def _run(self) -> None:
        while not self._stopping.is_set():
            document = {"name": "Ada", "email": "ada@example.org"}
            self._outcomes[self._server.ask("/start-job", document)[0]] += 1


def spoil(wheel: Path) -> None:
    """Make the API of this release end at once."""
    with zipfile.ZipFile(wheel) as old:
        files = {info: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(wheel, "w") as new:
        for info, content in files.items():
            new.writestr(
                info, b"raise SystemExit(1)\n" if info.filename == "service/__main__.py" else content
            )


def copy_checkout(folder: Path) -> None:
    """What a clone would have, and what is not committed yet."""
    listed = ["git", "-C", str(TESTS.parent), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TESTS.parent / name, target)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with machine() as box:
        checkout = box.folder / "srv/async-email"
        checkout.mkdir()
        copy_checkout(checkout)
        wheels(box.folder / "srv/wheels")
        (box.folder / "srv/old.env").write_text(OLD_ENV)
        server = Server(box, tmp_path_factory.mktemp("server"))
        yield server
        server.stop_sink()


def test_install(server: Server) -> None:
    arguments = ("--env", "/srv/old.env")
    said = server.install(*arguments, "--dry-run")
    assert "would make the system user async-email" in said
    assert server.box.do("ls", "/opt").strip() == ""
    said = server.install(*arguments)
    server.key = said.strip().splitlines()[-1]
    assert server.key.startswith("ae_"), said
    assert "nothing to change" in server.install(*arguments)
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
    for unit, most in (("async-email-api@1", 1.5), ("async-email-consumer@1", 2.0)):
        report = server.box.do("systemd-analyze", "security", "--no-pager", f"{unit}.service")
        found = re.search(r"Overall exposure level for .*: ([0-9.]+)", report)
        assert found, report
        assert float(found[1]) <= most


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


def test_after_a_reboot_everything_goes_on(server: Server) -> None:
    server.stop_sink()
    before = server.mails()
    waiting = [server.accept() for _ in range(3)]
    server.box.shut_down()
    server.box.boot()
    server.start_sink()
    wait_until(server.takes, 60)
    for job_id in waiting:
        server.wait_for_sent(job_id)
    assert server.mails() == before + 3


def test_there_can_be_more_and_fewer_instances(server: Server) -> None:
    assert "enable async-email-api@3.service" in server.install("--services", "3")
    assert server.active("async-email-api@3")
    assert server.ask("/3/metrics", host="127.0.0.1:8080")[0] == 200
    assert "nothing to change" in server.install()  # as many as there are
    assert "no longer wanted" in server.install("--services", "2")
    assert not server.active("async-email-api@3")
    assert "api-3.sock" not in server.box.do("cat", "/etc/nginx/sites-available/async-email.conf")
    server.wait_for_sent(server.accept())


def test_an_upgrade_under_load_fails_no_request(server: Server) -> None:
    wheels = server.box.folder / "srv/wheels"
    shutil.copy(next(wheels.glob("idna-*.whl")), wheels / "zz_not_needed-1.0-py3-none-any.whl")
    load = Load(server)
    said = server.install()
    outcomes = load.stop()
    assert "run release" in said
    assert set(outcomes) == {202}
    assert sum(outcomes.values()) > 20
    assert "nothing to change" in server.install()


def test_an_upgrade_that_does_not_get_well_is_taken_back(server: Server) -> None:
    running = server.box.do("readlink", "/opt/async-email/current")
    spoil(next((server.box.folder / "srv/wheels").glob("async_email-*.whl")))
    load = Load(server)
    with pytest.raises(AssertionError, match="runs again"):
        server.install()
    assert set(load.stop()) == {202}
    assert server.box.do("readlink", "/opt/async-email/current") == running
    server.wait_for_sent(server.accept())


def test_it_can_be_taken_away(server: Server) -> None:
    command = ("/srv/async-email/.venv/bin/async-email", "uninstall")
    assert "would remove /opt/async-email" in server.box.do(*command, "--dry-run")
    server.box.do(*command)
    assert server.box.do("ls", "/opt").strip() == ""
    assert "service-redis-url" in server.box.do("ls", "/etc/async-email/credentials")
    server.box.do(*command, "--purge")
    assert server.box.do("ls", "/etc/async-email", check=False).endswith("No such file or directory\n")
    assert server.active("redis-server")
    assert "async-email" not in server.box.do("systemctl", "list-unit-files")
