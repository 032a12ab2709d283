"""``./run bench``: a rough measurement of this system alone, on loopback, with every write synced.

Prints accepts a second (one service process, 64 connections), mails a second (one consumer, a relay that
answers at once and one that takes 20 ms a reply), and the memory of both programs. Figures of one shared
machine: compare them with others of the same run only.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from console.neighbours import free_port, need_alive, program, valkey

_DEADLINE_SECONDS = 120.0


class _SinkProcess:
    def __init__(self, delay: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink", str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line())

    def taken(self) -> int:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return self._process.stdout.readline()


def _memory_mb(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the measurement did not come to an end")
        time.sleep(0.02)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _system(folder: Path, smtp_port: int, connections: int) -> Iterator[int]:
    """Valkey and the service, with an ``.env`` for the consumer as well. Gives the API's port."""
    port = free_port()
    with valkey(folder) as redis_url:
        (folder / ".env").write_text(
            f"REDIS_URL={redis_url}\nAPI_BIND=127.0.0.1:{port}\nAPI_AUTH=off\nMAIL_FROM=a@example.org\n"
            f"SMTP_HOST=127.0.0.1\nSMTP_PORT={smtp_port}\nSMTP_CONNECTIONS={connections}\n"
            f"CONSUMER_METRICS_BIND=127.0.0.1:{free_port()}\nRECONCILE_SECONDS=60\n",
            encoding="utf-8",
        )
        yield port


def _measure(delay: float, connections: int, jobs: int) -> None:
    sink = _SinkProcess(delay)
    with tempfile.TemporaryDirectory(prefix="async-email-", dir="/tmp") as name:
        folder = Path(name)
        with _system(folder, sink.port, connections) as port, program("service", folder) as service:
            _wait(lambda: _ready(port))
            answer = subprocess.run(
                [sys.executable, "-m", "benchmarks.load", str(port), "64", str(jobs)],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            rate, median, worst = answer.stdout.split()
            memory = _memory_mb(service)
            print(f"accept: {rate}/s, median {median} ms, p99 {worst} ms; service {memory:.0f} MB")
            jobs = jobs // 64 * 64
            with program("consumer", folder) as consumer:
                _wait(lambda: sink.taken() > 0)
                started, first = time.perf_counter(), sink.taken()
                _wait(lambda: sink.taken() >= jobs)
                seconds = time.perf_counter() - started
                need_alive("consumer", consumer, folder)
                print(
                    f"deliver, relay at {delay * 1000:.0f} ms, {connections} connections: "
                    f"{(jobs - first) / seconds:.0f}/s; consumer {_memory_mb(consumer):.0f} MB"
                )
    sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    jobs = parser.parse_args().jobs
    _measure(delay=0.0, connections=20, jobs=jobs)
    _measure(delay=0.02, connections=20, jobs=jobs // 10)


if __name__ == "__main__":
    main()
