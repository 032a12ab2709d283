"""A Postfix of Debian's, as an instance of its own in a temporary folder. Needs root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from programs import free_port, wait_until
from relay import Relay, in_thread

USER, PASSWORD = "shop", "correct horse # battery"

MAIN_CF = """\
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
smtpd_tls_cert_file = {folder}/relay.pem
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = relay.test
cyrus_sasl_config_path = {folder}/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions =
    check_recipient_access inline:{{{{refused@example.org=550 5.1.1 no such user}}, \
{{later@example.org=450 4.2.1 try again}}}}
"""

MASTER_CF = """\
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

SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {folder}/sasldb2
mech_list: PLAIN LOGIN
"""


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, f"{name} is not installed; as root, tests/system/install-packages does it"
    return found


@dataclass
class Postfix:
    port: int
    authority_file: Path
    sink: Relay
    """Where Postfix passes on what it took."""


@contextmanager
def run_postfix(authority: trustme.CA) -> Iterator[Postfix]:
    """STARTTLS, AUTH only under TLS, mail only for who is authenticated; passes all on to a sink."""
    with (
        tempfile.TemporaryDirectory(prefix="postfix-", dir="/tmp") as name,
        in_thread(Relay()) as sink,
    ):
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        places = {"folder": folder, "port": port, "sink_port": sink.port}
        (folder / "main.cf").write_text(MAIN_CF.format_map(places))
        (folder / "master.cf").write_text(MASTER_CF.format_map(places))
        (folder / "sasl").mkdir()
        (folder / "sasl/smtpd.conf").write_text(SASL.format_map(places))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(folder / "relay.pem")
        )
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        subprocess.run(
            [tool("saslpasswd2"), "-c", "-p", "-f", str(folder / "sasldb2"), "-u", "relay.test", USER],
            input=PASSWORD.encode(),
            check=True,
        )
        owner = pwd.getpwnam("postfix")
        os.chown(folder / "sasldb2", owner.pw_uid, owner.pw_gid)
        for place in ("queue", "data"):
            (folder / place).mkdir()
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        command = [tool("postfix"), "-c", str(folder)]
        subprocess.run([*command, "start"], check=True, capture_output=True, timeout=60)
        try:
            yield Postfix(port, folder / "authority.pem", sink)
        finally:
            subprocess.run([*command, "stop"], check=True, capture_output=True, timeout=60)
            wait_until(lambda: not _running(folder), what="the end of Postfix")


def _running(folder: Path) -> bool:
    pid = (folder / "queue/pid/master.pid").read_text().strip()
    return Path(f"/proc/{pid}").exists()
