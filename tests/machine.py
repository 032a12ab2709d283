"""A Debian 12 of our own, booted with systemd in a container: the server that the installer is tried on.

Needs root, debootstrap and systemd-nspawn. It has no network but its own loopback.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from programs import wait_until

ROOT: Final = Path(__file__).parents[1]
CACHE: Final = Path("/var/cache/async-email-tests")
"""The bare Debian is made once for a machine."""

PACKAGES: Final = "systemd,systemd-sysv,dbus,redis-server,nginx-light,python3-venv,iproute2,procps"
PUBLIC_ADDRESS: Final = "192.0.2.1"
"""Of a documentation network (RFC 5737), on the machine's own loopback: what the world would reach."""


def mirror() -> str:
    """Where this machine's own packages come from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()[0]


def bare_debian() -> Path:
    folder = CACHE / "debian-12"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=CACHE))
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(new)]
        subprocess.run([*command, mirror()], check=True, stdout=subprocess.DEVNULL)
        new.chmod(0o755)
        new.rename(folder)
    return folder


@dataclass
class Machine:
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder.with_suffix(".log")

    def boot(self) -> None:
        command = ["systemd-nspawn", "--boot", f"--directory={self.folder}", "--private-network"]
        alone = ["--register=no", "--keep-unit", "--console=pipe"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *alone], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._is_up, 90, f"the machine to boot, see {self.log}")
        self.do("ip", "address", "add", f"{PUBLIC_ADDRESS}/32", "dev", "lo")

    def shut_down(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)  # systemd-nspawn asks the machine to power off
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()

    def do(self, *command: str | Path, check: bool = True, text: str | None = None) -> str:
        """Run a program inside; its output."""
        done = subprocess.run(
            [*self._enter("--mount", "--uts", "--ipc", "--net", "--pid", "--root"), *map(str, command)],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        )
        if check and done.returncode:
            raise AssertionError(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def beside(self, *arguments: str) -> list[str]:
        """A command for this Python with the checkout's packages, in the machine's network."""
        return [*self._enter("--net"), sys.executable, *arguments]

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", f"--target={self._leader()}", *namespaces]

    def _leader(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def _is_up(self) -> bool:
        try:
            state = self.do("systemctl", "is-system-running", check=False).strip()
        except (IndexError, FileNotFoundError):
            return False
        return state in {"running", "degraded"}


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A fresh copy, booted; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="server-", dir="/var/tmp"))
    root = folder / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(bare_debian()), str(root)], check=True)
    (root / "etc/machine-id").write_text("")
    server = Machine(root)
    try:
        server.boot()
        yield server
    finally:
        server.shut_down()
        shutil.rmtree(folder)


def wheels(folder: Path) -> None:
    """Everything that an installation without a network needs."""
    subprocess.run([str(ROOT / "run"), "wheels", str(folder)], check=True, capture_output=True)
