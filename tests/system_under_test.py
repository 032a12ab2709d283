"""The whole system as its users see it: two processes, a ledger, a relay."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from programs import Answer, Program, ask, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families
from relay import Relay


def quick_settings(redis_url: str, smtp_port: int) -> dict[str, str]:
    """Settings for one system on this machine that loses no time; the API on a free port."""
    return {
        "REDIS_URL": redis_url,
        "API_BIND": f"127.0.0.1:{free_port()}",
        "API_AUTH": "off",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(smtp_port),
        "MAIL_FROM": "hello@example.org",
        "LOG_FORMAT": "json",
        "RECONCILE_SECONDS": "0.5",
        "LEASE_SECONDS": "2",
        "RETRY_SCHEDULE": "0.3",
    }


@dataclass
class System:
    folder: Path
    settings: dict[str, str]
    relay: Relay
    programs: list[Program] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://{self.settings['API_BIND']}"

    def start(self, name: str, **settings: str) -> Program:
        number = len(self.programs)
        folder = self.folder / f"{name}-{number}"
        folder.mkdir()
        changes = {**settings}
        if name == "consumer":
            changes.setdefault("CONSUMER_METRICS_BIND", f"127.0.0.1:{free_port()}")
        program = Program(name, folder, {**self.settings, **changes})
        self.programs.append(program)
        if name == "service":
            wait_until(self.ready, what="the service")
        else:
            wait_until(lambda: program.log_file.exists() and program.logged("broker_connected"))
        return program

    def ready(self) -> bool:
        try:
            return ask(f"{self.api}/readyz").status == 200
        except OSError:
            return False

    def post(self, name: str = "Ada", email: str = "ada@example.org", **headers: str) -> Answer:
        return ask(f"{self.api}/start-job", {"name": name, "email": email}, headers=headers)

    def accept(self, name: str = "Ada", email: str = "ada@example.org") -> str:
        answer = self.post(name, email)
        assert answer.status == 202, answer.body
        return str(answer.json["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = ask(f"{self.api}/jobs/{job_id}")
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def wait_for(self, job_id: str, status: str, seconds: float = 30.0) -> dict[str, Any]:
        wait_until(
            lambda: self.job(job_id)["status"] == status, seconds, f"{status}, not {self.job(job_id)}"
        )
        return self.job(job_id)


class MakeSystem(Protocol):
    """The fixture ``make_system``."""

    def __call__(self, relay: Relay, **settings: str) -> System: ...


def metrics(bind: str) -> dict[str, float]:
    """Sums by sample name, over all labels, and each sample with its labels."""
    text = ask(f"http://{bind}/metrics").body.decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name] = samples.get(sample.name, 0) + sample.value
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples
