"""Posts jobs over keep-alive connections, in a process of its own.

Run as ``python -m benchmarks.load CONNECTIONS JOBS PER_SECOND PORT...`` (``0`` a second: as fast as
answers come). Prints JSON: answers a second, and the latencies' median and 99th percentile in
milliseconds; at a given rate, the moment of each post by job id as well. A server that closes the
connection after an answer, as Gunicorn's plain workers do, gets a new one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator

import uvloop

_BODY = b'{"name":"Ada Lovelace","email":"ada@example.org"}'
_REQUEST = (
    b"POST /start-job HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Load:
    def __init__(self, jobs: int, per_second: float) -> None:
        self._left = iter(range(jobs))
        self._per_second = per_second
        self._begin = time.perf_counter()
        self.latencies: list[float] = []
        self.posts: dict[str, float] = {}

    async def run(self, port: int) -> None:
        """One connection after the other, until no jobs are left."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in self._left:
            if self._per_second:
                wait = self._begin + number / self._per_second - time.perf_counter()
                await asyncio.sleep(max(0.0, wait))
            at, started = time.time(), time.perf_counter()
            writer.write(_REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 202"):
                raise RuntimeError(head.decode())
            body = await reader.readexactly(
                int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            )
            self.latencies.append(time.perf_counter() - started)
            if self._per_second:
                self.posts[json.loads(body)["job_id"]] = at
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def main(connections: int, jobs: int, per_second: float, ports: Iterator[int]) -> None:
    load = Load(jobs, per_second)
    started = time.perf_counter()
    await asyncio.gather(*(load.run(port) for port in itertools.islice(ports, connections)))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles(load.latencies, n=100)
    print(
        json.dumps(
            {
                "rate": len(load.latencies) / seconds,
                "median_ms": cuts[49] * 1000,
                "p99_ms": cuts[98] * 1000,
                "posts": load.posts,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            itertools.cycle(map(int, sys.argv[4:])),
        )
    )
