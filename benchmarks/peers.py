"""The peers: what a user would else pick, each in an environment of its own from the package index.

Each is set up as its own documentation advises; where its default is low for mail, higher. Their Redis
has its default persistence (snapshots), not the fsync of every write that ours has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent / "peer"
ENVIRONMENTS: Final = Path(__file__).parent.parent / ".bench"


@dataclass(frozen=True)
class Peer:
    """``work`` is run in the peer's environment; ``enqueue`` of its module enqueues mails."""

    name: str
    packages: Sequence[str]
    module: str
    work: Sequence[str]

    @property
    def programs(self) -> Path:
        return ENVIRONMENTS / self.module / "bin"

    def install(self) -> None:
        """Make the environment, unless it is there."""
        done = ENVIRONMENTS / self.module / "installed"
        wanted = "\n".join(self.packages)
        if done.exists() and done.read_text() == wanted:
            return
        print(f"installing {', '.join(self.packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENTS / self.module], check=True)
        pip = [str(self.programs / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--disable-pip-version-check", *self.packages], check=True)
        done.write_text(wanted)

    def environment(self, redis_url: str, smtp_port: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "BENCH_REDIS": redis_url,
            "BENCH_SMTP_PORT": str(smtp_port),
        }

    def worker(self) -> list[str | Path]:
        return [self.programs / self.work[0], *self.work[1:]]

    def enqueue(self, mails: int, environment: dict[str, str]) -> None:
        program = f"import {self.module}; {self.module}.enqueue({mails})"
        subprocess.run([self.programs / "python", "-c", program], env=environment, check=True)


_SMTP = "aiosmtplib==5.1.3"
_CELERY = ("celery[redis]==5.7.0", "flask==3.1.3", "gunicorn==27.0.1")

CELERY: Final = Peer(
    "Celery prefork (2)",
    _CELERY,
    "celery_stack",
    ("celery", "-A", "celery_stack", "worker", "-c", "2", "-l", "warning"),
)
CELERY_THREADS: Final = Peer(
    "Celery threads (100)",
    _CELERY,
    "celery_stack",
    ("celery", "-A", "celery_stack", "worker", "-P", "threads", "-c", "100", "-l", "warning"),
)
TASKIQ: Final = Peer(
    "taskiq (2 workers)",
    ("taskiq==0.13.0", "taskiq-redis==1.2.4", _SMTP),
    "taskiq_stack",
    ("taskiq", "worker", "taskiq_stack:broker", "--workers", "2", "--log-level", "WARNING"),
)
ARQ: Final = Peer("arq", ("arq==0.28.0", _SMTP), "arq_stack", ("arq", "arq_stack.WorkerSettings"))
SAQ: Final = Peer(
    "SAQ", ("saq[redis]==0.26.4", "typing_extensions", _SMTP), "saq_stack", ("saq", "saq_stack.settings")
)
STREAQ: Final = Peer(
    "streaQ", ("streaq==7.2.0", _SMTP), "streaq_stack", ("streaq", "run", "streaq_stack:worker")
)


def web(port: int) -> list[str | Path]:
    """The old system's API."""
    return [CELERY.programs / "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "celery_stack:web"]
