"""The system installed on a machine of its own, with a relay and now and then a Prometheus beside it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from machine import PUBLIC_ADDRESS, Machine, wheels
from postfix import tool
from programs import wait_until

SINK_PORT = 2525
PROMETHEUS = "127.0.0.1:9090"
ASK = """
import sys, json
from programs import ask
url, key, document = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}"} if key else {}
answer = ask(url, json.loads(document) or None, headers=headers)
print(json.dumps([answer.status, answer.headers["Content-Type"], answer.body.decode()]))
"""
TESTS = Path(__file__).parent
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

    def run(self, command: str, *arguments: str) -> str:
        """A command of the checkout that needs the packages."""
        return self.box.do("/srv/async-email/run", command, "--wheels", "/srv/wheels", *arguments)

    def install_first(self, *arguments: str) -> None:
        said = self.run("install", *arguments)
        found = re.search(r"^ae_\S+$", said, re.MULTILINE)
        assert found, said
        self.key = found[0]

    def doctor(self) -> dict[str, dict[str, str]]:
        """The worst finding by subject."""
        said = self.box.do("async-email", "doctor", "--json", check=False)
        findings: list[dict[str, str]] = json.loads(said)
        findings.sort(key=lambda finding: ["ok", "warning", "failed"].index(finding["verdict"]))
        return {finding["subject"]: finding for finding in findings}

    def need_little_exposed(self) -> None:
        for unit, most in (("async-email-api@1", 1.5), ("async-email-consumer@1", 2.0)):
            report = self.box.do("systemd-analyze", "security", "--no-pager", f"{unit}.service")
            found = re.search(r"Overall exposure level for .*: ([0-9.]+)", report)
            assert found, report
            assert float(found[1]) <= most

    def alerts(self) -> set[str]:
        """Those whose condition holds now, whether they have held for long enough or not."""
        try:
            status, _, body = self.ask("/api/v1/alerts", host=PROMETHEUS)
        except subprocess.CalledProcessError:  # it does not listen yet
            return set()
        if status != HTTPStatus.OK:
            return set()
        return {alert["labels"]["alertname"] for alert in json.loads(body)["data"]["alerts"]}

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
        words = (str(SINK_PORT), str(self._sink_log), "shop@example.org", "se cret")
        command = self.box.beside(str(TESTS / "sink_process.py"), *words)
        self._sink = subprocess.Popen(command, env={"PYTHONPATH": str(TESTS)})

    def stop_sink(self) -> None:
        if self._sink is not None:
            self._sink.terminate()
            self._sink.wait()

    def active(self, unit: str) -> bool:
        state = self.box.do("systemctl", "is-active", unit, check=False)
        return state.strip() == "active"


def need_well(findings: dict[str, dict[str, str]]) -> None:
    """Fails where the doctor found that anything fails."""
    assert not [finding for finding in findings.values() if finding["verdict"] == "failed"], findings


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


def copy_checkout(folder: Path) -> None:
    """What a clone would have, and what is not committed yet."""
    listed = ["git", "-C", str(TESTS.parent), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TESTS.parent / name, target)


@contextmanager
def prepared(box: Machine, folder: Path, python: str = "3.11") -> Iterator[Server]:
    """A machine with a checkout, every wheel and the old system's settings; nothing is installed."""
    checkout = box.folder / "srv/async-email"
    checkout.mkdir()
    copy_checkout(checkout)
    wheels(box.folder / "srv/wheels", python)
    (box.folder / "srv/old.env").write_text(OLD_ENV)
    server = Server(box, folder)
    try:
        yield server
    finally:
        server.stop_sink()


@contextmanager
def prometheus(server: Server, folder: Path) -> Iterator[None]:
    """Debian's Prometheus in the machine's network, with our rules, on the installed programs."""
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(TESTS.parent / "ops/prometheus/rules/*.yml")],
        "scrape_configs": [
            {
                "job_name": "async-email-api",
                "static_configs": [
                    {
                        "targets": ["127.0.0.1:8080"],
                        "labels": {
                            "__metrics_path__": f"/{number}/metrics",
                            "instance": f"api-{number}",
                        },
                    }
                    for number in (1, 2)
                ],
            },
            {"job_name": "async-email-consumer", "static_configs": [{"targets": ["127.0.0.1:9101"]}]},
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(configuration))
    command = server.box.in_its_network(
        tool("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={PROMETHEUS}",
    )
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
