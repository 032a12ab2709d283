"""Restarts under load: of the programs one by one, and of the ledger again and again."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from http.client import HTTPException

from ledger_server import LedgerServer
from programs import Program, ask, free_port, wait_until
from system_under_test import System


class Poster:
    """Posts to whichever service answers, as a proxy in front of two would."""

    def __init__(self, system: System, services: list[Program]) -> None:
        self.promised: list[str] = []
        self.statuses: Counter[int] = Counter()
        self._system = system
        self._services = services
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            document = {"name": "Ada", "email": f"user{number}@example.org"}
            for service in self._services:  # a refused connection goes to the next, as in Nginx
                try:
                    answer = ask(f"http://{service.settings['API_BIND']}/start-job", document)
                except ConnectionRefusedError:
                    continue
                except (OSError, HTTPException) as error:
                    if isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                        continue
                    self.statuses[-1] += 1
                    break
                self.statuses[answer.status] += 1
                if answer.status == 202:
                    self.promised.append(answer.json["job_id"])
                break
            else:
                self.statuses[0] += 1

    def more(self, jobs: int = 30) -> None:
        so_far = len(self.promised)
        wait_until(lambda: len(self.promised) > so_far + jobs)

    def stop(self) -> list[str]:
        self._stopping.set()
        self._thread.join()
        return self.promised


def has_begun_again(program: Program) -> bool:
    events = [line["event"] for line in program.log()]
    stopped = f"{program.name}_stopped"
    last_stop = len(events) - 1 - events[::-1].index(stopped)
    return "broker_connected" in events[last_stop:]


def test_rolling_restarts_fail_no_request_and_double_no_mail(system: System) -> None:
    services = [system.start("service")]
    system.settings["API_BIND"] = f"127.0.0.1:{free_port()}"
    services.append(system.start("service"))
    consumers = [system.start("consumer"), system.start("consumer")]
    poster = Poster(system, services)
    for program in [*services, *consumers, *consumers]:
        poster.more()
        assert program.stop() == 0
        poster.more()
        program.start()
        wait_until(partial(has_begun_again, program))
    promised = poster.stop()
    assert set(poster.statuses) == {202}
    for job_id in promised:
        system.wait_for(job_id, "sent")
    assert len(system.relay.taken) == len(promised)


def test_twenty_restarts_of_the_ledger_lose_nothing(system: System, server: LedgerServer) -> None:
    service, consumer = system.start("service"), system.start("consumer")
    poster = Poster(system, [service])
    for _ in range(20):
        poster.more(3)
        server.kill()
        server.start()
    poster.more()
    promised = poster.stop()
    assert set(poster.statuses) <= {202, 503}
    for job_id in promised:
        system.wait_for(job_id, "sent")
    assert service.process.poll() is None
    assert consumer.process.poll() is None
