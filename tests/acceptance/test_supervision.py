"""What the programs tell systemd, on a socket like its own."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import wait_until
from system_under_test import System


@pytest.fixture
def notifications(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(15)
        yield listener


@pytest.mark.parametrize("name", ["service", "consumer"])
def test_ready_alive_and_stopping(system: System, notifications: socket.socket, name: str) -> None:
    supervised = {"NOTIFY_SOCKET": notifications.getsockname(), "WATCHDOG_USEC": "300000"}
    program = system.start(name, **supervised)
    said = {notifications.recv(100).decode()}
    while "READY=1" not in said:
        said.add(notifications.recv(100).decode())
    for _ in range(3):
        assert notifications.recv(100) == b"WATCHDOG=1"
    program.process.send_signal(signal.SIGTERM)
    while (state := notifications.recv(100)) == b"WATCHDOG=1":
        pass
    assert state == b"STOPPING=1"
    wait_until(lambda: program.process.poll() == 0)


def drain(listener: socket.socket) -> None:
    while True:
        listener.recv(100)


def test_a_stopped_loop_does_not_feed_the_watchdog(system: System, notifications: socket.socket) -> None:
    supervised = {"NOTIFY_SOCKET": notifications.getsockname(), "WATCHDOG_USEC": "300000"}
    program = system.start("consumer", **supervised)
    program.process.send_signal(signal.SIGSTOP)
    notifications.settimeout(0.5)
    with pytest.raises(TimeoutError):
        drain(notifications)
    program.process.send_signal(signal.SIGCONT)
    assert notifications.recv(100) == b"WATCHDOG=1"


def test_a_supervisor_that_does_not_listen_changes_nothing(system: System, tmp_path: Path) -> None:
    system.start("service", NOTIFY_SOCKET=str(tmp_path / "nobody"))
    system.start("consumer", NOTIFY_SOCKET="@nobody-listens-here", WATCHDOG_USEC="100000")
    system.wait_for(system.accept(), "sent")
