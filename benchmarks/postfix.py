"""Postfix, where it is installed and we are root: accepts and relays, its queue on disk.

A peer of the measurements, and a relay that nobody here wrote for the system tests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.running import wait
from console.neighbours import free_port

SESSIONS: Final = 10

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.test
mydestination =
relayhost = [127.0.0.1]:{sink_port}
smtp_tls_security_level = none
{more}
"""

OPEN_TO_THIS_MACHINE: Final = """\
smtpd_relay_restrictions = permit_mynetworks, reject
mynetworks = 127.0.0.0/8"""

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
tlsmgr    unix - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
"""


def smtp_source_there() -> bool:
    return shutil.which("smtp-source", path=_PATH) is not None


def postfix_there() -> bool:
    return smtp_source_there() and os.geteuid() == 0


def send_with_smtp_source(port: int, mails: int) -> None:
    """Postfix's own load generator, on connections that it keeps."""
    command = ["smtp-source", "-d", "-s", SESSIONS, "-m", mails, "-l", 1000]
    addresses = ["-f", "shop@example.org", "-t", "ada@example.org", f"127.0.0.1:{port}"]
    words = [str(word) for word in (*command, *addresses)]
    subprocess.run(words, env={**os.environ, "PATH": _PATH}, check=True)


@contextmanager
def postfix(folder: Path, sink_port: int, more: str = OPEN_TO_THIS_MACHINE) -> Iterator[int]:
    """An instance of its own. Gives its port. ``more`` goes into its main.cf: who may relay, and how."""
    port = free_port()
    folder.chmod(0o755)
    places = {"folder": folder, "port": port, "sink_port": sink_port, "more": more}
    (folder / "main.cf").write_text(_MAIN.format_map(places))
    (folder / "master.cf").write_text(_MASTER.format_map(places))
    for place in ("queue", "data"):
        (folder / place).mkdir()
    owner = pwd.getpwnam("postfix")
    os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
    command = ["postfix", "-c", str(folder)]
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run([*command, "start"], env=environment, check=True, capture_output=True)
    try:
        yield port
    finally:
        subprocess.run([*command, "stop"], env=environment, check=True, capture_output=True)
        wait(lambda: not _runs(folder), seconds=20)


def _runs(folder: Path) -> bool:
    pid = (folder / "queue/pid/master.pid").read_text().strip()
    return Path(f"/proc/{pid}").exists()
