"""Posts jobs over keep-alive connections, in a process of its own.

Run as ``python -m benchmarks.load PORT CONNECTIONS JOBS``: prints answers a second and the latencies'
median and 99th percentile in milliseconds.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import uvloop

_BODY = b'{"name":"Ada Lovelace","email":"ada@example.org"}'
_REQUEST = (
    b"POST /start-job HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


async def _post(port: int, jobs: int, latencies: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(jobs):
        started = time.perf_counter()
        writer.write(_REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(head.decode())
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        latencies.append(time.perf_counter() - started)
    writer.close()


async def main(port: int, connections: int, jobs: int) -> None:
    latencies: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(_post(port, jobs // connections, latencies) for _ in range(connections)))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100)
    print(f"{len(latencies) / seconds:.0f} {cuts[49] * 1000:.2f} {cuts[98] * 1000:.2f}")


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
