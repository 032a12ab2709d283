"""A random history: load, kills, pauses, restarts and relay faults drawn from a seed, then the books.

``./run test-faults --random --seconds 60 --seed 7``. Everything is looked at from outside: the answers
of the API, the log of the sink, the ledger. A history that does not balance prints its seed and why.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import redis
from ledger_server import LedgerServer
from programs import Program, ask, free_port, wait_until
from relay import Relay
from system_under_test import System, metrics, quick_settings

SERVICES, CONSUMERS, POSTERS = 2, 2, 4
QUIET_SECONDS = 180.0
"""How long all jobs may take to come to an end after the last fault."""

MOST_MEGABYTES = 120
MOST_FILES = 120

# What recipients ask of the sink, and how often.
WISHES = {
    "": 60,
    "rcpt-450-x1+": 6,
    "content-451-x1+": 6,
    "data-451-x1+": 3,
    "rcpt-550+": 6,
    "content-554+": 3,
    "drop-rcpt-x1+": 3,
    "drop-data-x1+": 3,
    "drop-content-x1+": 3,
    "drop-dot-x1+": 4,
    "slow-0.3+": 6,
}
REFUSED = ("rcpt-550+", "content-554+")


@dataclass
class Promise:
    """A request and what was answered. ``ids`` has every job id that a 202 named."""

    key: str
    address: str
    ids: set[str] = field(default_factory=set)


class SinkProcess:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log_file = folder / "sink.log"
        self.log_file.touch()
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).parents[1] / "sink_process.py")]
        self.process = subprocess.Popen([*command, str(self.port), str(self.log_file)])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class World:
    """All processes of one history."""

    def __init__(self, folder: Path) -> None:
        self.ledger = LedgerServer(folder)
        self.ledger.start()
        self.sink = SinkProcess(folder)
        quick = quick_settings(self.ledger.url, self.sink.port)
        settings = {**quick, "RETRY_SCHEDULE": "0.5,1", "DRAIN_SECONDS": "5"}
        self.system = System(folder, settings, Relay())
        self.services = [self._program("service", f"s{number}") for number in range(SERVICES)]
        self.consumers = [self._program("consumer", f"c{number}") for number in range(CONSUMERS)]
        for program in self.services:
            wait_until(partial(answers, program))

    def _program(self, name: str, label: str) -> Program:
        folder = self.system.folder / label
        folder.mkdir()
        bind = "API_BIND" if name == "service" else "CONSUMER_METRICS_BIND"
        settings = {**self.system.settings, bind: f"127.0.0.1:{free_port()}"}
        return Program(name, folder, settings)

    def all_programs(self) -> list[Program]:
        return [*self.services, *self.consumers]

    def close(self) -> None:
        for program in self.all_programs():
            if program.process.poll() is None:
                program.process.send_signal(signal.SIGCONT)
            program.kill()
        self.sink.kill()
        self.ledger.kill()


def answers(program: Program, path: str = "/readyz") -> bool:
    try:
        return ask(f"http://{program.settings['API_BIND']}{path}", timeout=3).status == 200
    except (OSError, HTTPException):
        return False


def alive(program: Program) -> bool:
    return answers(program, "/livez")


class Load:
    """Posters that repeat a request, with its key, until it is answered 202."""

    def __init__(self, world: World, seed: int) -> None:
        self.promises: list[Promise] = []
        self.statuses: Counter[str] = Counter()
        self._world = world
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._post, args=(random.Random(f"{seed}-{number}"), number))
            for number in range(POSTERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _post(self, chance: random.Random, poster: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            (wish,) = chance.choices(list(WISHES), list(WISHES.values()))
            promise = Promise(f"{poster}-{number}", f"{wish}user{poster}-{number}@example.org")
            self.promises.append(promise)
            while not self._ask(chance.choice(self._world.services), promise):
                if self._stopping.wait(0.05):
                    return
            self._stopping.wait(chance.expovariate(15))

    def _ask(self, service: Program, promise: Promise) -> bool:
        url = f"http://{service.settings['API_BIND']}/start-job"
        document = {"name": "Ada", "email": promise.address}
        try:
            answer = ask(url, document, headers={"Idempotency-Key": promise.key}, timeout=8)
        except (OSError, HTTPException):
            self.statuses["no answer"] += 1
            return False
        self.statuses[str(answer.status)] += 1
        if answer.status == 202:
            promise.ids.add(answer.json["job_id"])
        return answer.status == 202


class Faults:
    """One fault after the other; each is undone before the next begins."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.drawn: Counter[str] = Counter()
        self._world = world
        self._chance = chance
        self._kinds: dict[Callable[[], None], int] = {
            self.kill_consumer: 6,
            self.stop_consumer: 4,
            self.pause_consumer: 5,
            self.kill_service: 3,
            self.stop_service: 2,
            self.kill_ledger: 3,
            self.pause_ledger: 2,
            self.read_only_ledger: 1,
            self.kill_sink: 4,
            self.delete_queue: 2,
            self.delete_binding: 1,
            self.forget_scripts: 1,
            self.poison: 2,
        }

    def draw(self) -> None:
        """One fault, and a moment of peace."""
        (fault,) = self._chance.choices(list(self._kinds), list(self._kinds.values()))
        self.drawn[fault.__name__] += 1
        fault()
        self._pause(1.5)

    def _pause(self, most: float) -> None:
        time.sleep(self._chance.uniform(0, most))

    def kill_consumer(self) -> None:
        program = self._chance.choice(self._world.consumers)
        program.kill()
        self._pause(3)
        program.start()

    def stop_consumer(self) -> None:
        program = self._chance.choice(self._world.consumers)
        # A program that is told to stop before it has begun ends by the signal itself.
        wait_until(lambda: in_flight(program) >= 0, what="a consumer that has begun")
        status = program.stop(30)
        if status != 0:
            raise AssertionError(f"a consumer ended with {status} on SIGTERM")
        program.start()

    def pause_consumer(self) -> None:
        program = self._chance.choice(self._world.consumers)
        program.process.send_signal(signal.SIGSTOP)
        self._pause(5)
        program.process.send_signal(signal.SIGCONT)

    def kill_service(self) -> None:
        program = self._chance.choice(self._world.services)
        program.kill()
        self._pause(1)
        program.start()

    def stop_service(self) -> None:
        program = self._chance.choice(self._world.services)
        wait_until(lambda: alive(program), what="a service that has begun")
        status = program.stop(40)
        if status != 0:
            raise AssertionError(f"a service ended with {status} on SIGTERM")
        program.start()

    def kill_ledger(self) -> None:
        self._world.ledger.kill()
        self._pause(3)
        self._world.ledger.start()

    def pause_ledger(self) -> None:
        process = self._world.ledger.process
        if process is not None:
            process.send_signal(signal.SIGSTOP)
            self._pause(4)
            process.send_signal(signal.SIGCONT)

    def read_only_ledger(self) -> None:
        with self._world.ledger.client() as client:
            client.replicaof("127.0.0.1", "1")
            self._pause(3)
            client.replicaof("NO", "ONE")

    def kill_sink(self) -> None:
        self._world.sink.kill()
        self._pause(2)
        self._world.sink.start()

    def delete_queue(self) -> None:
        with self._world.ledger.client() as client:
            client.delete("async-email.doorbells")

    def delete_binding(self) -> None:
        with self._world.ledger.client() as client:
            client.delete("_kombu.binding.async-email")

    def forget_scripts(self) -> None:
        with self._world.ledger.client() as client:
            client.script_flush()

    def poison(self) -> None:
        with self._world.ledger.client() as client:
            client.lpush("async-email.doorbells", self._chance.choice(["x", "{}", "[" * 9999, "null"]))


def check(world: World, promises: list[Promise]) -> list[str]:
    """Everything that is wrong with the books, once all is quiet."""
    wrong: list[str] = []
    with world.ledger.client() as client:
        statuses = {
            str(key).rpartition(":")[2]: job_status(client, str(key))
            for key in client.scan_iter("mail:{0}:job:*", count=1000)
        }
        counts = {str(name): int(value) for name, value in client.hgetall("mail:{0}:counts").items()}
        due = client.zcard("mail:{0}:due")
    if due:
        wrong.append(f"{due} jobs are still due")
    real = Counter(statuses.values())
    if {name: count for name, count in counts.items() if count} != dict(real):
        wrong.append(f"the counts {counts} are not the jobs {dict(real)}")
    wrong += check_promises(promises, statuses)
    wrong += check_mail(world, promises, statuses)
    wrong += [f"the programs hold too much: {line}" for line in map(leak, world.all_programs()) if line]
    return wrong


def job_status(client: redis.Redis, key: str) -> str:
    return str(client.hget(key, "status"))


def check_promises(promises: list[Promise], statuses: dict[str, str]) -> list[str]:
    wrong = []
    for promise in promises:
        if len(promise.ids) > 1:
            wrong.append(f"key {promise.key} made {len(promise.ids)} jobs")
        for job_id in promise.ids:
            refused = promise.address.startswith(REFUSED)
            expected = "failed" if refused else "sent"
            if statuses.get(job_id) != expected:
                wrong.append(f"{job_id} to {promise.address} is {statuses.get(job_id)}, not {expected}")
    if len(statuses) > len(promises):
        wrong.append(f"{len(statuses)} jobs of {len(promises)} requests")
    return wrong


def check_mail(world: World, promises: list[Promise], statuses: dict[str, str]) -> list[str]:
    wrong = []
    copies: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in world.sink.log_file.read_text(encoding="utf-8").splitlines():
        taken = json.loads(line)
        if taken["accepted"]:
            copies[taken["message_id"].strip("<>").partition("@")[0]].append(taken)
    wrong += [f"mail of an unknown job {job_id}" for job_id in copies if job_id not in statuses]
    wrong += [
        f"{job_id} is sent, but no mail came"
        for job_id, status in statuses.items()
        if status == "sent" and job_id not in copies
    ]
    api = f"http://{world.services[0].settings['API_BIND']}"
    for job_id, mails in copies.items():
        if len(mails) > 1:
            events = ask(f"{api}/jobs/{job_id}").json["events"]
            ambiguous = [event for event in events if event["event"] == "ambiguous"]
            if len(ambiguous) < len(mails) - 1:
                wrong.append(f"{job_id} was sent {len(mails)} times, explained {len(ambiguous)} times")
    doubled = sum(len(mails) - 1 for mails in copies.values())
    print(f"mails {sum(map(len, copies.values()))}, doubled and explained {doubled}, of {len(promises)}")
    return wrong


def leak(program: Program) -> str:
    folder = Path(f"/proc/{program.process.pid}")
    status = (folder / "status").read_text(encoding="utf-8")
    megabytes = int(status.partition("VmRSS:")[2].split()[0]) // 1024
    files = len(list((folder / "fd").iterdir()))
    threads = int(status.partition("Threads:")[2].split()[0])
    if megabytes > MOST_MEGABYTES or files > MOST_FILES or threads > 20:
        return f"{program.name}: {megabytes} MB, {files} files, {threads} threads"
    return ""


def run(seed: int, seconds: float) -> list[str]:
    # Below /tmp, because the path of a unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="history-", dir="/tmp"))
    world = World(folder)
    load, faults = Load(world, seed), Faults(world, random.Random(seed))
    try:
        load.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            faults.draw()
        load.stop()
        with world.ledger.client() as client:
            wait_until(lambda: not client.zcard("mail:{0}:due"), QUIET_SECONDS, "the end of all jobs")
        wait_until(lambda: all(answers(program) for program in world.services))
        wait_until(lambda: all(in_flight(program) == 0 for program in world.consumers))
        wrong = check(world, load.promises)
        print(f"answers {dict(load.statuses)}; faults {dict(faults.drawn)}")
    except AssertionError as error:
        wrong = [str(error)]
    finally:
        load.stop()
        world.close()
    if not wrong:
        shutil.rmtree(folder)
    else:
        print(f"the logs are in {folder}")
    return wrong


def in_flight(program: Program) -> float:
    try:
        return metrics(program.settings["CONSUMER_METRICS_BIND"])["async_email_mails_in_flight"]
    except OSError:
        return -1


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run test-faults --random")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s", flush=True)
    wrong = run(arguments.seed, arguments.seconds)
    for line in wrong[:50]:
        print(f"WRONG: {line}")
    verdict = "does not balance" if wrong else "balances"
    print(f"the history of seed {arguments.seed} {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
