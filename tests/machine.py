"""A Debian or Ubuntu of our own, booted with systemd in a container: servers to try the installer on.

Needs root, debootstrap and systemd-nspawn. It has no network but its own loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from programs import wait_until

ROOT: Final = Path(__file__).parents[1]
CACHE: Final = Path("/var/cache/async-email-tests")
"""The bare systems are made once for a machine."""

PACKAGES: Final = "systemd,systemd-sysv,dbus,redis-server,nginx-light,python3-venv,iproute2,procps"
UBUNTU_ARCHIVE: Final = "http://archive.ubuntu.com/ubuntu"
UBUNTU_KEYS: Final = "pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
UBUNTU_KEYS_SHA256: Final = "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8"
"""Debian 12 has no package with these keys."""
PUBLIC_ADDRESS: Final = "192.0.2.1"
"""Of a documentation network (RFC 5737), on the machine's own loopback: what the world would reach."""


@dataclass(frozen=True)
class Distribution:
    name: str
    suite: str
    components: str = "main"

    def mirror(self) -> str:
        return UBUNTU_ARCHIVE if self.name.startswith("ubuntu") else own_mirror()

    def can_be_had(self) -> bool:
        """Whether it is here, or its archive answers."""
        if (CACHE / self.name).exists():
            return True
        with contextlib.suppress(OSError), urlopen(f"{self.mirror()}/dists/{self.suite}/InRelease"):
            return True
        return False


DEBIAN_12: Final = Distribution("debian-12", "bookworm")
UBUNTU_24: Final = Distribution("ubuntu-24.04", "noble", "main,universe")


def own_mirror() -> str:
    """Where this machine's own packages come from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()[0]


def bare(distribution: Distribution) -> Path:
    folder = CACHE / distribution.name
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=CACHE))
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}"]
        command.append(f"--components={distribution.components}")
        place = [distribution.suite, str(new), distribution.mirror()]
        if distribution is UBUNTU_24:
            command.append(f"--keyring={_ubuntu_keys()}")
            # Debian's debootstrap knows no newer Ubuntu by name; they are all made in one way.
            place.append("/usr/share/debootstrap/scripts/jammy")
        subprocess.run([*command, *place], check=True, stdout=subprocess.DEVNULL)
        new.chmod(0o755)
        new.rename(folder)
    return folder


def _ubuntu_keys() -> Path:
    with urlopen(f"{UBUNTU_ARCHIVE}/{UBUNTU_KEYS}") as answer:
        package = answer.read()
    assert hashlib.sha256(package).hexdigest() == UBUNTU_KEYS_SHA256
    file = CACHE / "ubuntu-keyring.deb"
    file.write_bytes(package)
    subprocess.run(["dpkg-deb", "--extract", str(file), str(CACHE / "ubuntu-keyring")], check=True)
    return CACHE / "ubuntu-keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg"


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
            self.inside(*command), input=text, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def inside(self, *command: str | Path) -> list[str]:
        """The command that runs this one inside, as root and with a plain environment."""
        enter = self._enter("--mount", "--uts", "--ipc", "--net", "--pid", "--root")
        plain = ["/usr/bin/env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        return [*enter, *plain, *map(str, command)]

    def beside(self, *arguments: str) -> list[str]:
        """A command for this Python with the checkout's packages, in the machine's network."""
        return self.in_its_network(sys.executable, *arguments)

    def in_its_network(self, *command: str) -> list[str]:
        return [*self._enter("--net"), *command]

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
def machine(distribution: Distribution = DEBIAN_12) -> Iterator[Machine]:
    """A fresh copy, booted; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="server-", dir="/var/tmp"))
    root = folder / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(bare(distribution)), str(root)], check=True)
    (root / "etc/machine-id").write_text("")
    server = Machine(root)
    try:
        server.boot()
        yield server
    finally:
        server.shut_down()
        shutil.rmtree(folder)


def wheels(folder: Path, python: str = "3.11") -> None:
    """Everything that an installation without a network needs."""
    subprocess.run([str(ROOT / "run"), "setup"], check=True, capture_output=True)
    environment = {**os.environ, "PIP_PYTHON_VERSION": python}
    command = [str(ROOT / "run"), "wheels", str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
