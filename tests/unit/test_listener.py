"""The socket of the service, where another process has taken its path."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypercorn.config import Config

from mailjob.settings import Bind
from service import listener as module
from service.listener import Listener


def listening(bind: Bind, config: Config) -> Listener:
    listener = Listener(bind, config)
    with socket.socket(fileno=os.dup(int(config.bind[0].removeprefix("fd://")))) as served:
        served.listen()
    return listener


async def test_the_socket_of_a_successor_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    path = tmp_path / "api.sock"
    old, new = (listening(Bind(path=str(path)), Config()) for _ in range(2))
    await old.leave()
    assert path.exists()
    await new.leave()
    assert not path.exists()


async def test_tcp_is_left_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    config = Config()
    listener = listening(Bind("127.0.0.1", 0), config)
    (bind,) = config.bind
    await listener.leave()
    with socket.socket(fileno=int(bind.removeprefix("fd://"))) as served:
        assert served.getsockname()[0] == "127.0.0.1"
