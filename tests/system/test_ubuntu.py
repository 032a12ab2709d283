"""Ubuntu 24.04: other versions of everything, and Python 3.12."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from installed import UNITS, Server, need_well, prepared
from machine import UBUNTU_24, machine
from programs import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not UBUNTU_24.can_be_had():
        pytest.skip("Ubuntu's archive cannot be reached from here")
    with (
        machine(UBUNTU_24) as box,
        prepared(box, tmp_path_factory.mktemp("ubuntu"), python="3.12") as server,
    ):
        yield server


def test_from_an_empty_server_to_a_mail(server: Server) -> None:
    arguments = ("--env", "/srv/old.env")
    server.install_first(*arguments)
    assert "nothing to change" in server.run("install", *arguments)
    server.start_sink()
    server.wait_for_sent(server.accept())
    need_well(server.doctor())


def test_little_is_exposed(server: Server) -> None:
    server.need_little_exposed()


def test_what_is_killed_comes_back(server: Server) -> None:
    killed = (*UNITS, "redis-server")
    server.box.do("systemctl", "kill", "--kill-whom=main", "--signal=KILL", *killed)
    wait_until(lambda: all(map(server.active, killed)), 30)
    wait_until(server.takes, 30)
    server.wait_for_sent(server.accept())


def test_after_a_reboot_everything_goes_on(server: Server) -> None:
    server.stop_sink()
    waiting = server.accept()
    server.box.shut_down()
    server.box.boot()
    server.start_sink()
    wait_until(server.takes, 60)
    server.wait_for_sent(waiting)
