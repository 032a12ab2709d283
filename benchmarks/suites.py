"""Which measurements make a suite, and what is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import experiments, peers
from benchmarks.experiments import FAR_SECONDS, Figures, Measure
from benchmarks.postfix import postfix_there, smtp_source_there

MILLION: Final = 1_000_000


@dataclass(frozen=True)
class Target:
    """``value`` may be at least, or where ``most`` is set at most, what is wanted."""

    what: str
    unit: str
    wanted: float
    value: Callable[[Mapping[str, Figures]], float]
    most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.wanted if self.most else value >= self.wanted


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    measures: Mapping[str, Measure]
    targets: Sequence[Target]
    needs: Sequence[peers.Peer] = ()
    rounds: int = 3


def ratio(ours: str, other: str, figure: str = "rate") -> Callable[[Mapping[str, Figures]], float]:
    return lambda results: results[ours][figure] / results[other][figure]


def figure(system: str, name: str) -> Callable[[Mapping[str, Figures]], float]:
    return lambda results: results[system][name]


def suites(scale: float) -> list[Suite]:
    """``scale`` multiplies the numbers of mails: 1 takes about 20 minutes on two cores."""

    def many(mails: int) -> int:
        return max(640, int(mails * scale))

    ours, ours_2, empty, flask = "ours", "ours, 2 processes", "empty Quart route", "Flask + Celery"
    celery, threads, taskiq = peers.CELERY, peers.CELERY_THREADS, peers.TASKIQ
    deliver = experiments.deliver_ours
    peer = experiments.deliver_peer
    return [
        Suite(
            "accept",
            "POST /start-job, 64 connections",
            {
                ours: partial(experiments.accept_ours, 1, many(15_000)),
                empty: partial(experiments.accept_empty, 1, many(15_000)),
                ours_2: partial(experiments.accept_ours, 2, many(20_000)),
                flask: partial(experiments.accept_flask, many(8_000)),
                "ours, 100 a second": partial(experiments.accept_quietly, many(1_000), 100.0),
            },
            [
                Target("accepts, 2 processes", "x Flask + Celery", 3.0, ratio(ours_2, flask)),
                Target("accepts, 1 process", "of an empty route", 0.8, ratio(ours, empty)),
                Target(
                    "accepts, p99 over an empty route's",
                    "ms",
                    10.0,
                    lambda results: results[ours]["p99_ms"] - results[empty]["p99_ms"],
                    most=True,
                ),
                Target(
                    "median at 100 requests/s",
                    "ms",
                    3.0,
                    figure("ours, 100 a second", "median_ms"),
                    True,
                ),
                Target("service's memory", "MB", 70, figure(ours, "megabytes"), True),
            ],
            needs=[celery],
        ),
        Suite(
            "deliver",
            "mails/s, relay answers at once",
            {
                ours: partial(deliver, many(30_000)),
                celery.name: partial(peer, celery, many(6_000)),
                threads.name: partial(peer, threads, many(6_000)),
                taskiq.name: partial(peer, taskiq, many(6_000)),
                peers.ARQ.name: partial(peer, peers.ARQ, many(4_000)),
                peers.SAQ.name: partial(peer, peers.SAQ, many(4_000)),
                peers.STREAQ.name: partial(peer, peers.STREAQ, many(4_000)),
                **(
                    {"smtp-source": partial(experiments.deliver_smtp_source, many(40_000))}
                    if smtp_source_there()
                    else {}
                ),
            },
            [
                Target("mails, relay at 0 ms", "x Celery prefork", 8.0, ratio(ours, celery.name)),
                Target("mails, relay at 0 ms", "x taskiq", 6.0, ratio(ours, taskiq.name)),
                *(
                    [Target("mails, relay at 0 ms", "of smtp-source", 1 / 3, ratio(ours, "smtp-source"))]
                    if smtp_source_there()
                    else []
                ),
                Target("consumer's memory", "MB", 60, figure(ours, "megabytes"), True),
            ],
            needs=[celery, taskiq, peers.ARQ, peers.SAQ, peers.STREAQ],
        ),
        Suite(
            "far",
            "mails/s, relay takes 20 ms a reply",
            {
                "ours, 20 connections": partial(deliver, many(5_000), FAR_SECONDS, 20),
                "ours, 100 connections": partial(deliver, many(15_000), FAR_SECONDS, 100),
                celery.name: partial(peer, celery, max(60, int(200 * scale)), FAR_SECONDS),
                threads.name: partial(peer, threads, many(3_000), FAR_SECONDS),
                taskiq.name: partial(peer, taskiq, many(4_000), FAR_SECONDS),
            },
            [
                Target(
                    "mails, 20 ms, 20 connections", "/s", 800, figure("ours, 20 connections", "rate")
                ),
                Target(
                    "mails, 20 ms, 100 connections",
                    "x Celery prefork",
                    250,
                    ratio("ours, 100 connections", celery.name),
                ),
                Target(
                    "mails, 20 ms, 100 connections",
                    "x taskiq",
                    4.0,
                    ratio("ours, 100 connections", taskiq.name),
                ),
            ],
            needs=[celery, taskiq],
        ),
        Suite(
            "whole",
            "mails/s from the post to the relay, everything on this machine",
            {
                ours: partial(experiments.whole_ours, many(15_000)),
                flask: partial(experiments.whole_celery, many(4_000)),
                **(
                    {"Postfix": partial(experiments.whole_postfix, many(6_000))}
                    if postfix_there()
                    else {}
                ),
            },
            [
                *(
                    [Target("whole way", "x Postfix", 2.0, ratio(ours, "Postfix"))]
                    if postfix_there()
                    else []
                ),
                Target("CPU a mail, Celery stack's", "x ours", 4.0, ratio(flask, ours, "cpu_us")),
            ],
            needs=[celery],
        ),
        Suite(
            "latency",
            "from the post to the relay's reply, 20 mails a second",
            {ours: partial(experiments.latency_ours, 600, 20.0)},
            [
                Target("post to the relay's 250, median", "ms", 5.0, figure(ours, "median_ms"), True),
                Target("post to the relay's 250, p99", "ms", 20.0, figure(ours, "p99_ms"), True),
            ],
        ),
        Suite(
            "growth",
            "with a long backlog",
            {
                "accept, backlog 1,000": partial(experiments.accept_ours, 1, many(10_000), 1000),
                "accept, backlog 1,000,000": partial(experiments.accept_ours, 1, many(10_000), MILLION),
                "deliver, backlog 1,000": partial(deliver, many(20_000), backlog=1000),
                "deliver, backlog 1,000,000": partial(deliver, many(20_000), backlog=MILLION),
            },
            [
                Target(
                    f"{what}, backlog of 1,000,000",
                    "of 1,000's rate",
                    0.9,
                    ratio(f"{what}, backlog 1,000,000", f"{what}, backlog 1,000"),
                )
                for what in ("accept", "deliver")
            ],
        ),
        Suite(
            "scale",
            "several processes on this machine",
            {
                f"{number} services": partial(experiments.accept_ours, number, many(15_000))
                for number in (1, 2, 3)
            }
            | {
                f"{number} consumers": partial(deliver, many(30_000), consumers=number)
                for number in (1, 2, 3)
            },
            [],
        ),
        Suite(
            "memory",
            "after 200,000 mails",
            {
                f"{program}, {number:,}": partial(measure, number)
                for program, measure in (
                    ("consumer", deliver),
                    ("service", partial(experiments.accept_ours, 1)),
                )
                for number in (20_000, 200_000)
            },
            [
                Target(
                    f"{program}'s memory, 200,000 mails",
                    "of 20,000's",
                    1.05,
                    ratio(f"{program}, 200,000", f"{program}, 20,000", "megabytes"),
                    most=True,
                )
                for program in ("consumer", "service")
            ],
            rounds=1,
        ),
    ]
