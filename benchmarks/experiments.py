"""What is measured: each experiment sets a system up, lets it work, and gives its figures.

The figures of one experiment are comparable with each other, as all of them ran in turn on one machine.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.neighbours import ROOT, Ours, Sink, answers, load, redis_server, sink
from benchmarks.postfix import postfix, send_with_smtp_source
from benchmarks.running import Running, running, wait
from console.neighbours import free_port

Figures = Mapping[str, float]
Measure = Callable[[], Figures]

CONNECTIONS: Final = 64
FAR_SECONDS: Final = 0.02
"""A relay that takes this long for each reply."""


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp")


# Accepting


def accept_ours(services: int, jobs: int, backlog: int = 0) -> Figures:
    with _folder() as name, redis_server(Path(name), durable=True) as url:
        ours = Ours(Path(name), url, smtp_port=9)
        ours.preload(backlog, rung=0)
        with ours.services(services) as (ports, programs):
            return _accepts(ports, programs, jobs)


def accept_empty(processes: int, jobs: int) -> Figures:
    ports = [free_port() for _ in range(processes)]
    with _folder() as name, ExitStack() as stack:
        folder = Path(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "benchmarks.empty"]
        programs = [
            stack.enter_context(running([*command, str(port)], folder, environment)) for port in ports
        ]
        for port in ports:
            wait(partial(answers, port), *programs)
        return _accepts(ports, programs, jobs)


def accept_flask(jobs: int) -> Figures:
    with _folder() as name, redis_server(Path(name), durable=False) as url:
        port = free_port()
        environment = peers.CELERY.environment(url, 9)
        with running(peers.web(port), Path(name), environment) as web:
            wait(partial(answers, port), web)
            return _accepts([port], [web], jobs)


def accept_quietly(jobs: int, per_second: float) -> Figures:
    with (
        _folder() as name,
        redis_server(Path(name), durable=True) as url,
        Ours(Path(name), url, smtp_port=9).services(1) as (ports, _),
    ):
        return load(ports, CONNECTIONS, jobs, per_second).figures


def _accepts(ports: list[int], programs: list[Running], jobs: int) -> Figures:
    """After a tenth as many that are not counted."""
    load(ports, CONNECTIONS, jobs // 10)
    before = _cpu(programs)
    loaded = load(ports, CONNECTIONS, jobs)
    return {
        **loaded.figures,
        "cpu_us": (_cpu(programs) - before) / jobs * 1e6,
        "megabytes": sum(program.megabytes() for program in programs),
    }


# Delivering


def deliver_ours(
    mails: int, delay: float = 0.0, connections: int = 20, consumers: int = 1, backlog: int = 0
) -> Figures:
    """``backlog`` more jobs lie in the ledger."""
    with _folder() as name, redis_server(Path(name), durable=True) as url, sink(delay) as relay:
        ours = Ours(Path(name), url, relay.port, connections)
        ours.preload(mails + backlog, rung=mails)
        with ours.consumers(consumers) as programs:
            return _rate(relay, mails, programs)


def deliver_peer(peer: peers.Peer, mails: int, delay: float = 0.0) -> Figures:
    with _folder() as name, redis_server(Path(name), durable=False) as url, sink(delay) as relay:
        environment = peer.environment(url, relay.port)
        peer.enqueue(mails, environment)
        with running(peer.worker(), Path(name), environment) as worker:
            return _rate(relay, mails, [worker])


def deliver_smtp_source(mails: int) -> Figures:
    """The C limit: no queue, no ledger, one connection after the other is kept by ten threads."""
    with sink() as relay:
        started = time.perf_counter()
        send_with_smtp_source(relay.port, mails)
        return {"rate": mails / (time.perf_counter() - started)}


def _rate(relay: Sink, mails: int, programs: list[Running]) -> Figures:
    """Mails a second without the first tenth, in which programs start and connect."""
    wait(lambda: relay.taken() >= mails // 10, *programs)
    first, before, started = relay.taken(), _cpu(programs), time.perf_counter()
    wait(lambda: relay.taken() >= mails, *programs)
    seconds = time.perf_counter() - started
    return {
        "rate": (mails - first) / seconds,
        "cpu_us": (_cpu(programs) - before) / (mails - first) * 1e6,
        "megabytes": sum(program.megabytes() for program in programs),
    }


# The whole way


def whole_ours(mails: int) -> Figures:
    with (
        _folder() as name,
        redis_server(Path(name), durable=True) as url,
        sink() as relay,
    ):
        ours = Ours(Path(name), url, relay.port)
        with ours.services(1) as (ports, services), ours.consumers(1) as consumers:
            return _whole(relay, mails, ports, services, consumers)


def whole_celery(mails: int) -> Figures:
    with _folder() as name, redis_server(Path(name), durable=False) as url, sink() as relay:
        folder, port = Path(name), free_port()
        environment = peers.CELERY.environment(url, relay.port)
        with (
            running(peers.web(port), folder, environment) as web,
            running(peers.CELERY.worker(), folder, environment) as worker,
        ):
            wait(partial(answers, port), web)
            return _whole(relay, mails, [port], [web], [worker])


def whole_postfix(mails: int) -> Figures:
    with _folder() as name, sink() as relay, postfix(Path(name), relay.port) as port:
        started = time.perf_counter()
        send_with_smtp_source(port, mails)
        wait(lambda: relay.taken() >= mails)
        return {"rate": mails / (time.perf_counter() - started)}


def _whole(
    relay: Sink, mails: int, ports: list[int], services: list[Running], workers: list[Running]
) -> Figures:
    load(ports, CONNECTIONS, CONNECTIONS * 4)
    wait(lambda: relay.taken() >= CONNECTIONS * 4, *services, *workers)
    already, started = relay.taken(), time.perf_counter()
    before = _cpu(services), _cpu(workers)
    loaded = load(ports, CONNECTIONS, mails)
    wait(lambda: relay.taken() >= already + mails, *services, *workers)
    per_mail = 1e6 / mails
    return {
        "rate": mails / (time.perf_counter() - started),
        "service_cpu_us": (_cpu(services) - before[0]) * per_mail,
        "worker_cpu_us": (_cpu(workers) - before[1]) * per_mail,
        "cpu_us": (_cpu(services) + _cpu(workers) - sum(before)) * per_mail,
        "load_cpu_us": loaded.cpu_seconds * per_mail,
        "service_megabytes": sum(service.megabytes() for service in services),
        "worker_megabytes": sum(worker.megabytes() for worker in workers),
    }


def latency_ours(mails: int, per_second: float) -> Figures:
    """From a post to the sink's reply, where nothing else happens."""
    with _folder() as name, redis_server(Path(name), durable=True) as url, sink() as relay:
        ours = Ours(Path(name), url, relay.port)
        with ours.services(1) as (ports, services), ours.consumers(1) as consumers:
            load(ports, 1, 20)
            wait(lambda: relay.taken() >= 20, *services, *consumers)
            posts = load(ports, 4, mails, per_second).posts
            wait(lambda: relay.taken() >= 20 + mails, *services, *consumers)
            times = relay.times()
    took = [
        (times[f"<{job_id}@example.org>"] - at) * 1000
        for job_id, at in posts.items()
        if f"<{job_id}@example.org>" in times
    ]
    cuts = statistics.quantiles(took, n=100)
    return {"median_ms": cuts[49], "p99_ms": cuts[98]}


def _cpu(programs: list[Running]) -> float:
    return sum(program.cpu_seconds() for program in programs)
