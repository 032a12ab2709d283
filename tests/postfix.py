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
from relay import Relay, in_thread

from benchmarks.postfix import postfix

USER, PASSWORD = "shop", "correct horse # battery"

ACCESS = """\
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
        folder = Path(name)
        (folder / "sasl").mkdir()
        (folder / "sasl/smtpd.conf").write_text(SASL.format(folder=folder))
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
        with postfix(folder, sink.port, ACCESS.format(folder=folder)) as port:
            yield Postfix(port, folder / "authority.pem", sink)
