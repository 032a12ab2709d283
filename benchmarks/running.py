"""Processes under measurement: what they use, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEADLINE_SECONDS: Final = 180.0
STOP_SECONDS: Final = 20.0

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    """A program with all its children, ended ones too where their parents waited for them."""

    process: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        return sum(_cpu(pid) for pid in self._pids())

    def megabytes(self) -> float:
        """Memory that goes with these processes: shared pages are split among those that share them."""
        return sum(_proportional_kilobytes(pid) for pid in self._pids()) / 1024

    def need_alive(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args!r} ended:\n{self.log.read_text()[-2000:]}")

    def _pids(self) -> list[int]:
        """Of the program's own process group: it was started as the leader of one."""
        group = self.process.pid
        pids = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(ValueError, ProcessLookupError):
                if os.getpgid(int(entry.name)) == group:
                    pids.append(int(entry.name))
        return pids


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Start it in ``folder``, as the leader of a process group of its own; end that group."""
    log = folder / f"{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(condition: Callable[[], bool], *alive: Running, seconds: float = DEADLINE_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        for program in alive:
            program.need_alive()
        if time.monotonic() > until:
            logs = "".join(program.log.read_text()[-2000:] for program in alive)
            raise TimeoutError(f"the measurement did not come to an end:\n{logs}")
        time.sleep(0.01)


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def _proportional_kilobytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
