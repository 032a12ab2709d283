"""The machine: files, ports, disk, units."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from console.doctor.finding import Finding, Verdict

FREE_DISK: Final = 0.1
PORTS: Final = {
    6379: "Redis",
    8000: "the API",
    9101: "a consumer's metrics",
    9102: "a consumer's metrics",
}
LISTENING: Final = "0A"
"""A socket's state in /proc/net/tcp."""


def look_at_files(dotenv: Path) -> Iterator[Finding]:
    """The file of settings, and on a server the folder of secrets beside it."""
    credentials = dotenv.parent / "credentials"
    if credentials.is_dir() and credentials.stat().st_mode & 0o077:
        words = f"others than root can look into {credentials}"
        yield Finding("files", Verdict.FAILED, words, f"chmod 700 {credentials}")
    if not dotenv.exists():
        return
    open_to_all = dotenv.stat().st_mode & 0o004
    if open_to_all and "PASSWORD" in dotenv.read_text(encoding="utf-8", errors="replace"):
        advice = f"chmod 600 {dotenv}"
        yield Finding("files", Verdict.FAILED, f"everybody can read {dotenv} with its password", advice)
    else:
        yield Finding("files", Verdict.OK, f"{dotenv} is not open to everybody")


def look_at_ports() -> Iterator[Finding]:
    """Of ours, those that listen on more than this machine's own addresses (Linux)."""
    found = sorted(port for port in _world_ports() if port in PORTS)
    for port in found:
        advice = "bind it to 127.0.0.1, or close it in the firewall"
        yield Finding("ports", Verdict.WARNING, f"{PORTS[port]} listens to the world on {port}", advice)
    if not found:
        yield Finding("ports", Verdict.OK, "nothing of this system listens to the world")


def _world_ports() -> set[int]:
    ports = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        for _, local, _, state, *_rest in (row.split() for row in rows):
            address, _, port = local.partition(":")
            local_only = address.endswith("7F") or address == "0" * 24 + "01000000"
            if state == LISTENING and not local_only:
                ports.add(int(port, 16))
    return ports


def look_at_disk() -> Finding:
    place = next(path for path in (Path("/var/lib/redis"), Path("/")) if path.is_dir())
    usage = shutil.disk_usage(place)
    if usage.free < FREE_DISK * usage.total:
        free = f"{usage.free / 2**30:.1f} GiB are free at {place}"
        return Finding("disk", Verdict.WARNING, free, "a full disk stops all accepts: make room")
    return Finding("disk", Verdict.OK, f"{usage.free / 2**30:.1f} GiB are free at {place}")


def look_at_units() -> Iterator[Finding]:
    if not Path("/run/systemd/system").is_dir():
        return
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "async-email-*"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - ours
    for row in filter(None, map(str.split, listed.splitlines())):
        unit, _, active = row[:3]
        if active == "active":
            yield Finding("units", Verdict.OK, f"{unit} is active")
        else:
            yield Finding("units", Verdict.FAILED, f"{unit} is {active}", f"journalctl -u {unit} -n 20")
