"""The socket of the service, where another process has taken its path."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from mailjob.settings import Bind
from service import listener as module
from service.listener import Listener


def listening(bind: Bind) -> Listener:
    listener = Listener(bind)
    listener.socket.listen()
    return listener


async def test_the_socket_of_a_successor_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    path = tmp_path / "api.sock"
    old, new = (listening(Bind(path=str(path))) for _ in range(2))
    for listener, stays in ((old, True), (new, False)):
        with listener.socket:
            await listener.leave()
        assert path.exists() == stays


async def test_tcp_is_left_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects while a service leaves is not taken in, and so not reset."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    listener = listening(Bind("127.0.0.1", 0))
    address = listener.socket.getsockname()
    with listener.socket, socket.socket() as late:
        await listener.leave()
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS


async def test_a_path_that_cannot_be_taken_away_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    listener = listening(Bind(path=str(folder / "api.sock")))
    folder.rename(tmp_path / "old")
    folder.touch()
    with listener.socket:
        await listener.leave()
    assert listener.leaving
