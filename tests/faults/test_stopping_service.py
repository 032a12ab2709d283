"""A service that stops while new connections come as fast as they can: none of them is reset."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from programs import Program, wait_until
from relay import Relay
from system_under_test import MakeSystem

BODY = json.dumps({"name": "Ada", "email": "ada@example.org"})
CLIENTS = 8


def connect(bind: str) -> socket.socket:
    if bind.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(bind.removeprefix("unix:"))
        except OSError:
            connection.close()
            raise
        return connection
    host, port = bind.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def listens(bind: str) -> bool:
    try:
        connect(bind).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


class Crowd:
    """Clients that connect for every request, and go away when nobody listens."""

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def is_busy(self) -> bool:
        return self.outcomes["202"] > 100

    def gone(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                connection = connect(self._bind)
            except (ConnectionRefusedError, FileNotFoundError):
                return
            client = http.client.HTTPConnection("localhost", timeout=20)
            client.sock = connection
            try:
                headers = {"Content-Type": "application/json", "Connection": "close"}
                client.request("POST", "/start-job", BODY, headers)
                self.outcomes[str(client.getresponse().status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[type(error).__name__] += 1
            finally:
                client.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_no_connection_is_reset(make_system: MakeSystem, tmp_path: Path, kind: str) -> None:
    system = make_system(Relay())
    if kind == "unix":
        bind = f"unix:{tmp_path}/api.sock"
        service = Program("service", tmp_path, {**system.settings, "API_BIND": bind})
        system.programs.append(service)
    else:
        service = system.start("service")
        bind = service.settings["API_BIND"]
    for _ in range(5):
        wait_until(lambda: listens(bind))
        crowd = Crowd(bind)
        wait_until(crowd.is_busy)
        assert service.stop() == 0
        crowd.gone()
        assert set(crowd.outcomes) == {"202"}
        service.start()
