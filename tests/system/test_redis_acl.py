"""Debian's Redis with our drop-in and our users: each program can do its work, and nothing else."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from ledger_server import LedgerServer
from postfix import tool
from programs import Answer, Program, ask, free_port, wait_until
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.retry import Retry
from relay import CLOSE, HANG, Relay, in_thread
from system_under_test import System, quick_settings

OPS = Path(__file__).parents[2] / "ops/redis"
DEBIANS = Path("/etc/redis/redis.conf")
PASSWORDS = {"service": "one", "consumer": "two", "operator": "three", "tester": "four"}
QUEUE = "async-email.doorbells"
DUE = "mail:{0}:due"
FOR_PEOPLE = {"slowlog", "acl|log", "acl|whoami"}
"""Granted to the operator, used by no program."""


class GuardedServer(LedgerServer):
    """Debian's Redis as an installed system has it; with one more user, who may do everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tool("redis-server"))
        self.port = free_port()
        users = (OPS / "users.acl").read_text()
        for user, password in PASSWORDS.items():
            digest = hashlib.sha256(password.encode()).hexdigest()
            users = users.replace(f"<{user}-sha256>", digest)
        assert "<" not in users
        tester = f"user tester on >{PASSWORDS['tester']} ~* &* +@all\n"
        (folder / "async-email.acl").write_text(users + tester)
        moved = {
            "port 6379": f"port {self.port}",
            "/run/redis/redis-server.sock": str(self.socket),
            "/etc/redis/async-email.acl": f"{folder}/async-email.acl",
        }
        ours = (OPS / "async-email.conf").read_text()
        for old, new in moved.items():
            assert old in ours
            ours = ours.replace(old, new)
        (folder / "async-email.conf").write_text(ours)
        lines = [f"include {DEBIANS}"] if os.access(DEBIANS, os.R_OK) else []
        lines += ["daemonize no", 'logfile ""', f"pidfile {folder}/redis.pid", f"dir {folder}"]
        (folder / "redis.conf").write_text("\n".join([*lines, f"include {folder}/async-email.conf", ""]))

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            command = [self.binary, f"{self.folder}/redis.conf"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, what="Redis")

    def client(self, user: str = "tester") -> redis.Redis:
        return redis.Redis.from_url(self.url_of(user), decode_responses=True)

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{self.port}/0"


@dataclass
class Guarded(System):
    """Each program as its own user; requests with an API key."""

    server: GuardedServer | None = None
    key: str = ""

    def start(self, name: str, **settings: str) -> Program:
        assert self.server is not None
        return super().start(name, **{"REDIS_URL": self.server.url_of(name), **settings})

    def post(self, name: str = "Ada", email: str = "ada@example.org", **headers: str) -> Answer:
        return super().post(name, email, Authorization=f"Bearer {self.key}", **headers)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = ask(f"{self.api}/jobs/{job_id}", headers={"Authorization": f"Bearer {self.key}"})
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def operate(self, *arguments: str) -> str:
        """The operator's command; what it prints."""
        assert self.server is not None
        settings = {**self.settings, "REDIS_URL": self.server.url_of("operator")}
        done = subprocess.run(
            [sys.executable, "-m", "console", *arguments],
            env={"PATH": os.environ["PATH"], "ASYNC_EMAIL_KEY": self.key, **settings},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def server() -> Iterator[GuardedServer]:
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as name:
        server = GuardedServer(Path(name))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def system(server: GuardedServer, tmp_path: Path) -> Iterator[Guarded]:
    with in_thread(Relay()) as relay:
        settings = {**quick_settings("redis://nobody", relay.port), "API_AUTH": "keys"}
        system = Guarded(tmp_path, settings, relay, server=server)
        system.key = system.operate("keys", "create", "shop")
        yield system
        for program in system.programs:
            program.stop()


def refused_so_far(server: GuardedServer) -> list[tuple[str, str, str]]:
    with server.client() as client:
        entries = cast(list[dict[str, str]], client.acl_log())
    return [(entry["username"], entry["reason"], entry["object"]) for entry in entries]


def granted(user: str) -> set[str]:
    (line,) = re.findall(rf"^user {user} (.*)$", (OPS / "users.acl").read_text(), re.MULTILINE)
    return {word.strip("()").removeprefix("+") for word in line.split() if word.strip("()")[0] == "+"}


def from_a_key_to_a_mail(system: Guarded) -> None:
    assert system.operate("keys", "list").count("shop") == 1
    first = system.operate("send", "--name", "Ada", "--email", "ada@example.org")
    assert "sent" in system.operate("status", first, "--watch")
    once = {"Idempotency-Key": "once"}
    assert system.post(**once).json == system.post(**once).json
    system.wait_for(system.accept("Bob", "rcpt-450-x1+bob@example.org"), "sent")
    system.wait_for(system.accept("Eve", "rcpt-550+eve@example.org"), "failed")
    checks = ask(f"{system.api}/readyz").json["checks"]
    assert checks == {"ledger": "ok", "broker": "ok", "durability": "ok", "consumers": "ok"}
    assert b"async_email_ledger_durable 1.0" in ask(f"{system.api}/metrics").body


def what_redis_forgets(system: Guarded, server: GuardedServer, consumer: Program) -> None:
    with server.client() as client:
        client.script_flush()
        client.delete("_kombu.binding.async-email", QUEUE)
        client.lpush(QUEUE, "poison")
    system.wait_for(system.accept(), "sent")
    wait_until(lambda: consumer.logged("poison_message"))
    system.wait_for(system.accept(), "sent")


def consumers_that_end(system: Guarded, consumer: Program) -> None:
    """One dies, one is stopped with work in hand."""
    system.relay.answers = {"RCPT": [HANG]}
    taken_over = system.accept()
    system.wait_for(taken_over, "sending")
    consumer.kill()
    system.relay.answers = {}
    other = system.start("consumer")
    system.wait_for(taken_over, "sent")
    system.relay.answers = {"RCPT": [HANG]}
    given_back = system.accept()
    system.wait_for(given_back, "sending")
    assert other.stop() == 0
    system.relay.answers = {}
    system.start("consumer", AMBIGUOUS_POLICY="hold")
    system.wait_for(given_back, "sent")
    assert "given_back" in [event["event"] for event in system.job(given_back)["events"]]


def what_the_doctor_sees(system: Guarded) -> None:
    """Of the ledger and the broker: the network has no records for example.org."""
    found = system.operate("doctor")
    for subject in ("ledger", "durability", "consumers", "backlog", "broker", "relay"):
        assert re.search(rf"^ok +{subject}: ", found, re.MULTILINE), found


def what_a_person_decides(system: Guarded, server: GuardedServer) -> None:
    system.relay.answers = {"CONTENT": [CLOSE, CLOSE, "250 taken"]}
    held = [system.accept(), system.accept()]
    for job_id in held:
        system.wait_for(job_id, "uncertain")
    system.operate("resolve", held[0], "--sent")
    system.operate("resolve", held[1], "--resend")
    for job_id in held:
        system.wait_for(job_id, "sent")
    # The reconciler holds a job whose consumer died after the mark.
    system.relay.answers = {"CONTENT": [HANG]}
    marked = system.accept()
    with server.client() as client:
        wait_until(lambda: client.hget(f"mail:{{0}}:job:{marked}", "phase") == "data")
    system.programs[-1].kill()
    system.relay.answers = {}
    system.start("consumer", AMBIGUOUS_POLICY="hold")
    system.wait_for(marked, "uncertain")


def test_every_program_does_its_whole_work(system: Guarded, server: GuardedServer) -> None:
    """And what is granted is what is used."""
    with server.client() as client:
        client.config_resetstat()
    system.start("service")
    consumer = system.start("consumer")
    from_a_key_to_a_mail(system)
    what_redis_forgets(system, server, consumer)
    consumers_that_end(system, consumer)
    what_a_person_decides(system, server)
    what_the_doctor_sees(system)
    system.operate("keys", "revoke", system.key.split("_")[1])
    wait_until(lambda: system.post().status == 401)
    for program in system.programs:
        program.stop()
    assert refused_so_far(server) == []
    with server.client() as client:
        stats = cast(dict[str, object], client.info("commandstats"))
    used = {name.removeprefix("cmdstat_") for name in stats}
    for user in ("service", "consumer", "operator"):
        assert granted(user) - FOR_PEOPLE <= used


def test_all_goes_on_after_a_restart(system: Guarded, server: GuardedServer) -> None:
    service, consumer = system.start("service"), system.start("consumer")
    promised = [system.accept() for _ in range(10)]
    server.kill()
    wait_until(lambda: system.post().status == 503)
    wait_until(lambda: consumer.logged("sweep_failed"))
    server.start()
    wait_until(lambda: system.post().status == 202)
    promised.append(system.accept())
    for job_id in promised:
        system.wait_for(job_id, "sent")
    wait_until(lambda: ask(f"{system.api}/readyz").json["checks"]["broker"] == "ok")
    assert refused_so_far(server) == []
    for program in (service, consumer):
        assert program.stop() == 0
    assert refused_so_far(server) == []
    # Redis loads its file as the user "default", and says this of what that one may not do.
    assert "CRITICAL" not in (server.folder / "server.log").read_text()


EVERYBODY = [
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG SET appendonly no",
    "CONFIG SET dir /tmp",
    "CONFIG REWRITE",
    "CONFIG RESETSTAT",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "DBSIZE",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "SHUTDOWN NOSAVE",
    "MONITOR",
    "ACL LIST",
    "ACL GETUSER operator",
    "ACL SETUSER service +@all",
    "ACL LOAD",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1000",
    "MODULE LIST",
    "FUNCTION LIST",
    "REPLICAOF 127.0.0.1 1",
    "MIGRATE 127.0.0.1 1 x 0 1",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "SELECT 1",
    "SWAPDB 0 1",
    "SUBSCRIBE x",
    "PUBLISH x y",
    f"DEL {DUE}",
    f"UNLINK {QUEUE}",
    "RENAME mail:{0}:due mail:{0}:counts",
    "GET other",
    "SET other 1",
    "HGETALL mail:keys",
    "EXPIRE mail:keys 1",
]

ONE = {
    "service": [
        "INFO",
        "HVALS mail:keys",
        "HSET mail:keys x y",
        "HDEL mail:keys x",
        f"BRPOP {QUEUE} 1",
        f"RPOP {QUEUE}",
        f"LRANGE {QUEUE} 0 -1",
        "SMEMBERS _kombu.binding.other",
        "LPUSH other x",
        f"ZREM {DUE} x",
        "HDEL mail:{0}:job:x body",
        "PEXPIRE mail:{0}:job:x 1",
    ],
    "consumer": [
        "INFO",
        "HGET mail:keys x",
        "HVALS mail:keys",
        "HSET mail:keys x y",
        "GET mail:{0}:idem:x",
        "SET mail:{0}:idem:x y",
        f"RPOP {QUEUE}",
        "BRPOP other 1",
        f"ZCARD {DUE}",
    ],
    "operator": [
        "HGET mail:keys x",
        "GET mail:{0}:idem:x",
        "SMEMBERS _kombu.binding.async-email",
        f"BRPOP {QUEUE} 1",
        f"LPUSH {QUEUE} x",
        f"ZREM {DUE} x",
    ],
}


def test_nobody_may_do_more(server: GuardedServer) -> None:
    for user, commands in ONE.items():
        with server.client(user) as client:
            for command in [*EVERYBODY, *commands]:
                with pytest.raises(NoPermissionError):
                    pytest.fail(f"{user} may {command}: {client.execute_command(*command.split())}")


@pytest.mark.parametrize(
    "call",
    ["'FLUSHALL'", "'HVALS', 'mail:keys'", "'DEL', 'mail:{0}:due'", "'CONFIG', 'SET', 'save', ''"],
)
def test_nor_through_a_script(server: GuardedServer, call: str) -> None:
    for user in ("service", "consumer"):
        with server.client(user) as client:
            script = client.script_load(f"return redis.call({call})")
            with pytest.raises((ResponseError, NoPermissionError), match=r"can't|not allowed"):
                client.evalsha(script, 0)


@pytest.mark.parametrize("user", [None, "default", "service"])
@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_nobody_gets_in_without_a_password(
    server: GuardedServer, user: str | None, password: str | None
) -> None:
    once = Retry(NoBackoff(), 0)
    for place in ({"port": server.port}, {"unix_socket_path": str(server.socket)}):
        with (
            redis.Redis(**cast(Any, place), username=user, password=password, retry=once) as nobody,
            pytest.raises(AuthenticationError),
        ):
            nobody.ping()
    assert server.socket.stat().st_mode & 0o777 == 0o770


def test_the_server_keeps_what_it_is_given(server: GuardedServer) -> None:
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "aof-use-rdb-preamble": "yes",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1 -::1",
        "protected-mode": "yes",
        "tcp-keepalive": "60",
    }
    with server.client() as client:
        found = cast(dict[str, str], client.config_get("*"))
        assert {name: found[name] for name in wanted} == wanted
        secrets = ("requirepass", "masterauth", "tls-key-file-pass", "tls-client-key-file-pass")
        assert {found[name] for name in secrets} == {""}
        with pytest.raises(ResponseError):
            client.config_set("dir", str(server.folder))


def test_a_write_that_a_power_cut_tore_is_left_out(server: GuardedServer) -> None:
    with server.client() as client:
        client.set("whole", "1")
        client.set("torn", "1")
    server.kill()
    (written,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    written.write_bytes(written.read_bytes()[:-3])
    server.start()
    with server.client() as client:
        assert client.get("whole") == "1"
        assert client.get("torn") is None
