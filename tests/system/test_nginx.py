"""Debian's Nginx with our site, in front of two instances of the service on unix sockets."""

from __future__ import annotations

import email
import http.client
import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from ledger_server import LedgerServer
from postfix import tool
from programs import Answer, ask, free_port, wait_until
from relay import Relay, in_thread
from system_under_test import System, quick_settings

OPS = Path(__file__).parents[2] / "ops/nginx"
JSON = {"Content-Type": "application/json"}
ADA = b'{"name": "Ada", "email": "ada@example.org"}'
STRANGER = "127.0.0.2"
"""An address of this machine that is not trusted, as 127.0.0.1 is."""

# As Debian's, with everything in one folder.
NGINX_CONF = """\
{user}
worker_processes 2;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/logs/error.log;
events {{
    worker_connections 768;
}}
http {{
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    access_log {folder}/logs/access.log;
    include sites-enabled/*;
}}
"""


@dataclass
class Nginx:
    """Our files with only their paths and ports changed, and what a test wants otherwise."""

    folder: Path
    sockets: Path
    changes: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    inner: int = field(default_factory=free_port)
    tls: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        log = f"{self.folder}/logs/start.log"
        return [tool("nginx"), "-p", str(self.folder), "-c", f"{self.folder}/nginx.conf", "-e", log]

    def write(self) -> None:
        for name in ("logs", "temp", "snippets", "sites-enabled", "acme", "tls"):
            (self.folder / name).mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(NGINX_CONF.format(folder=self.folder, user=user))
        self._write("async-email.conf", "sites-enabled/async-email.conf")
        self._write("snippets/async-email-locations.conf", "snippets/async-email-locations.conf")
        if self.tls:
            self._write("async-email-tls.conf", "sites-enabled/async-email.tls.conf")

    def _write(self, source: str, target: str) -> None:
        moved = {
            "listen 80": f"listen 127.0.0.1:{self.port}",
            "listen 443": f"listen 127.0.0.1:{self.tls}",
            "listen 127.0.0.1:8080": f"listen 127.0.0.1:{self.inner}",
            "/run/async-email": str(self.sockets),
            "/var/log/nginx": f"{self.folder}/logs",
            "/var/www/async-email-acme": f"{self.folder}/acme",
            "/etc/letsencrypt/live/mail.example.org": f"{self.folder}/tls",
        }
        text = re.sub(r" *listen \[::\].*\n", "", (OPS / source).read_text())
        for old, new in {**moved, **self.changes}.items():
            text = text.replace(old, new)
        (self.folder / target).write_text(text)

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        wait_until(self._listens, what="Nginx")

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)

    def speak(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        source: str = "127.0.0.1",
    ) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=20, source_address=(source, 0)
        )
        try:
            connection.request(method, path, body, {**(JSON if body else {}), **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> Answer:
        """The answer to these bytes, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
            connection.sendall(request)
            received = b""
            with suppress(ConnectionResetError):  # of what it did not want to read
                while more := connection.recv(65536):
                    received += more
        head, _, body = received.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        return Answer(int(line.split()[1]), email.message_from_bytes(fields), body)

    def logged(self) -> list[dict[str, Any]]:
        text = (self.folder / "logs/async-email.access.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


@contextmanager
def run_nginx(sockets: Path, changes: Mapping[str, str] | None = None) -> Iterator[Nginx]:
    # Below /tmp, because the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="nginx-", dir="/tmp") as name:
        nginx = Nginx(Path(name), sockets, changes or {})
        nginx.write()
        nginx.start()
        try:
            yield nginx
        finally:
            nginx.stop()


@dataclass
class Proxied(System):
    """The system, spoken to through Nginx."""

    nginx: Nginx = field(kw_only=True)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.nginx.port}"

    def ready(self) -> bool:
        """Whether all instances are that were started."""
        instances = sum(program.name == "service" for program in self.programs)
        pages = [self.inside(f"/{number + 1}/readyz") for number in range(instances)]
        return all(page.status == 200 for page in pages)

    def inside(self, path: str) -> Answer:
        return ask(f"http://127.0.0.1:{self.nginx.inner}{path}")


@contextmanager
def two_instances() -> Iterator[Proxied]:
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="system-", dir="/tmp"))
        folder = Path(name)
        for part in ("redis", "run"):
            (folder / part).mkdir()
        server = LedgerServer(folder / "redis", tool("redis-server"))
        server.start()
        stack.callback(server.kill)
        relay = stack.enter_context(in_thread(Relay()))
        nginx = stack.enter_context(run_nginx(folder / "run"))
        system = Proxied(folder, quick_settings(server.url, relay.port), relay, nginx=nginx)
        stack.callback(stop_all, system)
        for number in (1, 2):
            system.start("service", API_BIND=f"unix:{folder}/run/api-{number}.sock")
        system.start("consumer")
        yield system


def stop_all(system: System) -> None:
    for program in system.programs:
        program.stop()


@pytest.fixture(scope="module")
def system() -> Iterator[Proxied]:
    with two_instances() as system:
        yield system


@pytest.fixture
def nginx(system: Proxied) -> Nginx:
    return system.nginx


def check_problem(answer: Answer, status: int, kind: str) -> None:
    """It is one as the service makes them, and says who asked."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json.keys() == {"type", "title", "status", "detail", "request_id"}
    assert answer.json["type"] == f"urn:async-email:problem:{kind}"
    assert answer.json["status"] == status
    assert answer.headers.get_all("X-Request-ID") == [answer.json["request_id"]]
    assert answer.headers["Server"] == "nginx"
    check_safe(answer)


def check_safe(answer: Answer) -> None:
    assert answer.headers.get_all("Cache-Control") == ["no-store"]
    assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


class Silent(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An instance that takes requests and answers nothing but ``answer``; without one it hangs, or
    breaks off.
    """

    daemon_threads = True

    def __init__(self, path: Path, *, answer: bytes = b"", hang: bool = False) -> None:
        self.answer = answer
        self.hang = hang
        self.heard: list[bytes] = []
        self.stopping = threading.Event()
        super().__init__(str(path), _Hear)

    @contextmanager
    def serve(self) -> Iterator[Silent]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            self.shutdown()
            thread.join()
            self.server_close()


class _Hear(socketserver.BaseRequestHandler):
    server: Silent

    def handle(self) -> None:
        self.server.heard.append(self.request.recv(65536))
        self.request.sendall(self.server.answer)
        if self.server.hang:
            self.server.stopping.wait(20)


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nginx_finds_no_fault_with_the_files(tmp_path: Path, authority: trustme.CA, tls: bool) -> None:
    nginx = Nginx(tmp_path, tmp_path, tls=free_port() if tls else 0)
    nginx.write()
    if tls:
        write_certificate(nginx, authority)
    tested = subprocess.run([*nginx.command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert len(tested.stderr.splitlines()) == 2, tested.stderr


def test_a_job_goes_through(system: Proxied) -> None:
    answer = system.post()
    assert answer.status == 202
    job_id = answer.json["job_id"]
    assert answer.headers["Location"] == f"/jobs/{job_id}"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert len(answer.headers.get_all("X-Request-ID", [])) == 1
    assert answer.headers["Server"] == "nginx"
    check_safe(answer)
    assert system.wait_for(job_id, "sent")["recipients"][0]["reply"].startswith("250")
    head = system.nginx.speak("HEAD", f"/jobs/{job_id}")
    assert (head.status, head.body) == (200, b"")


def test_what_the_service_answers_passes_as_it_is(system: Proxied, nginx: Nginx) -> None:
    unknown = nginx.speak("GET", "/jobs/nothing")
    check_problem(unknown, 404, "unknown-job")
    wrong = nginx.speak("POST", "/start-job", b"{}")
    assert wrong.status == 422
    assert [fault["pointer"] for fault in wrong.json["errors"]] == ["/name", "/email"]
    allowed = nginx.speak("GET", "/start-job")
    check_problem(allowed, 405, "method-not-allowed")
    assert allowed.headers.get_all("Allow") == ["POST"]
    key = {"Idempotency-Key": "once"}
    first, again = system.post(**key), system.post(**key)
    assert first.json == again.json
    assert again.headers["Idempotent-Replayed"] == "true"


def test_the_clients_request_id_is_used_where_it_is_harmless(system: Proxied, nginx: Nginx) -> None:
    taken = system.post(**{"X-Request-ID": "order-4711_a.b"})
    assert taken.headers["X-Request-ID"] == "order-4711_a.b"
    services = [program for program in system.programs if program.name == "service"]

    def logged() -> set[str]:
        return {line["request_id"] for program in services for line in program.logged("request")}

    wait_until(lambda: "order-4711_a.b" in logged())
    wait_until(lambda: nginx.logged()[-1]["request_id"] == "order-4711_a.b")
    for odd in ("a b", "x" * 129, '"', "é"):
        made = nginx.speak("GET", "/nothing", headers={"X-Request-ID": odd})
        assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-ID"])
        refused = nginx.speak("DELETE", "/nothing", headers={"X-Request-ID": odd})
        check_problem(refused, 405, "method-not-allowed")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused(nginx: Nginx, method: str) -> None:
    answer = nginx.speak(method, "/start-job")
    check_problem(answer, 405, "method-not-allowed")
    assert answer.headers.get_all("Allow") == ["GET, HEAD, POST"]
    wait_until(lambda: nginx.logged()[-1]["method"] == method)


@pytest.mark.parametrize("page", ["metrics", "livez", "readyz"])
def test_what_is_for_the_operator_is_closed(system: Proxied, nginx: Nginx, page: str) -> None:
    spellings = [page, f"{page}/", f"{page}/x", f"{page}?x", f"/{page}", f"./{page}", f"x/../{page}"]
    for path in [*spellings, f"%{ord(page[0]):x}{page[1:]}", f"{page}%2f", f"{page}%3Fx"]:
        check_problem(nginx.speak("GET", f"/{path}"), 404, "not-found")
        check_problem(nginx.speak("GET", f"/{path}", headers={"Idempotency-Key": "a"}), 404, "not-found")
    for number in (1, 2):
        assert system.inside(f"/{number}/{page}").status == 200


def test_each_instance_shows_its_own_metrics(system: Proxied) -> None:
    system.accept()

    def accepted(number: int) -> float:
        text = system.inside(f"/{number}/metrics").body.decode()
        (count,) = re.findall(r"^async_email_jobs_accepted_total (\S+)$", text, re.MULTILINE)
        return float(count)

    before = accepted(1) + accepted(2)
    for _ in range(10):
        system.accept()
    assert accepted(1) + accepted(2) == before + 10
    assert system.inside("/").status == 404
    assert system.inside("/start-job").status == 404
    assert system.inside("/3/metrics").status == 502
    assert system.inside("/1/../2/metrics").status == 200


def chunked(size: int) -> bytes:
    head = b"POST /start-job HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)


def test_bodies_have_a_limit(nginx: Nginx) -> None:
    too_large = nginx.speak("POST", "/start-job", b"x" * 65537)
    check_problem(too_large, 413, "request-entity-too-large")
    check_problem(nginx.raw(chunked(65537)), 413, "request-entity-too-large")
    keyed = nginx.speak("POST", "/start-job", b"x" * 65537, {"Idempotency-Key": "a"})
    check_problem(keyed, 413, "request-entity-too-large")
    largest = nginx.speak("POST", "/start-job", b"x" * 65536)
    check_problem(largest, 400, "invalid-json")


def test_headers_have_limits(nginx: Nginx) -> None:
    large = nginx.speak("GET", "/jobs/1", headers={"X-Large": "x" * 9000})
    check_problem(large, 431, "request-header-fields-too-large")
    many = {f"X-Large-{number}": "x" * 7000 for number in range(6)}
    check_problem(nginx.speak("GET", "/jobs/1", headers=many), 431, "request-header-fields-too-large")
    check_problem(nginx.speak("GET", "/" + "x" * 9000), 414, "request-uri-too-long")


def test_what_is_no_http_is_refused(nginx: Nginx) -> None:
    check_problem(nginx.raw(b"GET / HTTP/1.1\r\n\r\n"), 400, "bad-request")
    check_problem(nginx.raw(b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n"), 400, "bad-request")
    coding = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: rot13\r\n\r\n"
    check_problem(nginx.raw(coding), 501, "not-implemented")
    twice = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    check_problem(nginx.raw(twice), 400, "bad-request")
    both = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    check_problem(nginx.raw(both), 400, "bad-request")


def test_the_log_tells_no_secrets(nginx: Nginx) -> None:
    secret = {"Authorization": "Bearer s3cret", "User-Agent": 'a "quoted" one \u00ff'}
    nginx.raw(b"GET /\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    nginx.speak("GET", "/jobs/1?s3cret=s3cret", headers=secret)
    nginx.speak("DELETE", "/jobs/2?s3cret", headers=secret)
    wait_until(lambda: nginx.logged()[-1]["path"] == "/jobs/2")
    line = nginx.logged()[-2]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/jobs/1", 404)
    assert (line["upstream_status"], line["user_agent"]) == ("404", 'a "quoted" one ')
    assert (nginx.logged()[-1]["method"], nginx.logged()[-1]["status"]) == ("DELETE", 405)
    assert "s3cret" not in (nginx.folder / "logs/async-email.access.log").read_text()


def test_one_address_asks_only_so_often(system: Proxied) -> None:
    slower = {"rate=500r/s": "rate=1r/m", "burst=1000": "burst=2"}
    with run_nginx(system.nginx.sockets, slower) as nginx:
        asked = [nginx.speak("POST", "/start-job", ADA, source=STRANGER) for _ in range(5)]
        assert [answer.status for answer in asked] == [202, 202, 202, 429, 429]
        check_problem(asked[-1], 429, "too-many-requests")
        assert asked[-1].headers.get_all("Retry-After") == ["1"]
        key = {"Idempotency-Key": "limited"}
        keyed = nginx.speak("POST", "/start-job", ADA, key, source=STRANGER)
        check_problem(keyed, 429, "too-many-requests")
        trusted = [nginx.speak("POST", "/start-job", ADA) for _ in range(10)]
        assert {answer.status for answer in trusted} == {202}


def test_one_address_has_only_so_many_requests_under_way(system: Proxied) -> None:
    fewer = {"async_email_connections 100": "async_email_connections 1"}
    half = b"POST /start-job HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
    with run_nginx(system.nginx.sockets, fewer) as nginx:
        address = ("127.0.0.1", nginx.port)
        with socket.create_connection(address, source_address=(STRANGER, 0)) as connection:
            connection.sendall(half)
            ask_again = partial(nginx.speak, "GET", "/jobs/1", source=STRANGER)
            wait_until(lambda: ask_again().status == 429)
            check_problem(ask_again(), 429, "too-many-requests")
        wait_until(lambda: ask_again().status == 404)


def test_slow_clients_are_cut_off(system: Proxied) -> None:
    sooner = {"header_timeout 10s": "header_timeout 1s", "body_timeout 10s": "body_timeout 1s"}
    with run_nginx(system.nginx.sockets, sooner) as nginx:
        address = ("127.0.0.1", nginx.port)

        def cut_off(connection: socket.socket, more: bytes) -> bool:
            try:
                connection.sendall(more)
                return connection.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        for started, more in (
            (b"", b""),
            (b"GET / HTTP/1.1\r\nX-Slow: ", b"x"),  # however steadily it comes
            (b"POST /start-job HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx", b""),
        ):
            with socket.create_connection(address) as connection:
                connection.settimeout(0.01)
                connection.sendall(started)
                wait_until(partial(cut_off, connection, more), 5)
        assert nginx.speak("POST", "/start-job", ADA).status == 202


def test_without_an_instance_it_says_so(sockets: Path) -> None:
    with run_nginx(sockets) as nginx:
        for headers in ({}, {"Idempotency-Key": "a"}):
            answer = nginx.speak("POST", "/start-job", ADA, headers)
            check_problem(answer, 502, "bad-gateway")
            assert answer.headers.get_all("Retry-After") == ["1"]


@pytest.mark.parametrize("hang", [True, False], ids=["hangs", "breaks off"])
@pytest.mark.parametrize(
    ("method", "headers", "times"),
    [("POST", {}, 1), ("POST", {"Idempotency-Key": "a"}, 2), ("GET", {}, 2)],
    ids=["post", "post with a key", "get"],
)
def test_a_post_that_arrived_is_never_sent_twice(
    sockets: Path, method: str, headers: dict[str, str], times: int, hang: bool
) -> None:
    """Except with an Idempotency-Key, which makes it harmless."""
    with (
        Silent(sockets / "api-1.sock", hang=hang).serve() as one,
        Silent(sockets / "api-2.sock", hang=hang).serve() as other,
        run_nginx(sockets, {"proxy_read_timeout 10s": "proxy_read_timeout 300ms"}) as nginx,
    ):
        answer = nginx.speak(method, "/start-job", ADA if method == "POST" else None, headers)
        if hang:
            check_problem(answer, 504, "gateway-timeout")
        else:
            check_problem(answer, 502, "bad-gateway")
        assert len(one.heard) + len(other.heard) == times


def test_a_post_with_a_key_is_taken_by_the_other_instance(system: Proxied, sockets: Path) -> None:
    (sockets / "api-2.sock").symlink_to(system.nginx.sockets / "api-2.sock")
    with Silent(sockets / "api-1.sock").serve() as silent, run_nginx(sockets) as nginx:
        number = 0
        while len(silent.heard) < 3:
            number += 1
            key = {"Idempotency-Key": f"other-{number}"}
            assert nginx.speak("POST", "/start-job", ADA, key).status == 202


def test_an_instance_hears_only_what_nginx_knows(sockets: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with Silent(sockets / "api-1.sock", answer=answer).serve() as instance, run_nginx(sockets) as nginx:
        said = {
            "Host": "mail.example.org",
            "Authorization": "Bearer key",
            "Idempotency-Key": "a",
            "X-Request-ID": "mine",
            "X-Forwarded-For": "8.8.8.8",
            "X-Forwarded-Proto": "https",
            "Forwarded": "for=8.8.8.8",
            "X-Real-IP": "8.8.8.8",
            "Connection": "close",
        }
        got = nginx.speak("POST", "/start-job?x=1", ADA, said, source=STRANGER)
        assert got.status == 200
        assert got.headers["X-Request-ID"] == "mine"  # also where the service does not say it
        head, _, body = instance.heard[0].partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        heard = {name.lower(): value for name, value in email.message_from_bytes(fields).items()}
        assert line == b"POST /start-job?x=1 HTTP/1.1"
        assert body == ADA
        expected = {"host": "mail.example.org", "authorization": "Bearer key", "x-request-id": "mine"}
        forwarded = {"x-forwarded-for": STRANGER, "x-forwarded-proto": "http"}
        assert {name: heard.get(name) for name in {**expected, **forwarded}} == {**expected, **forwarded}
        assert heard["idempotency-key"] == "a"
        assert not heard.keys() & {"connection", "forwarded", "x-real-ip"}


class Poster:
    """One client that posts all the time over one connection.

    With a ``name``, each job has a key of its own, so that Nginx may send it again.
    """

    def __init__(self, nginx: Nginx, name: str | None) -> None:
        self.statuses: Counter[int] = Counter()
        self.promised: list[str] = []
        self._nginx = nginx
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._nginx.port, timeout=20)
        number = 0
        while not self._stopping.is_set():
            number += 1
            headers = {**JSON, **({"Idempotency-Key": f"{self._name}-{number}"} if self._name else {})}
            try:
                connection.request("POST", "/start-job", ADA, headers)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.statuses[0] += 1
                continue
            self.statuses[response.status] += 1
            if response.status == 202:
                self.promised.append(json.loads(body)["job_id"])
        connection.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def test_rolling_restarts_fail_no_request_and_double_no_job() -> None:
    with two_instances() as system, ExitStack() as stack:
        posters = [Poster(system.nginx, name) for name in ("first", "second", None, None)]
        for poster in posters:
            stack.callback(poster.stop)

        def more(jobs: int = 50) -> None:
            before = sum(len(poster.promised) for poster in posters)
            wait_until(lambda: sum(len(poster.promised) for poster in posters) > before + jobs)

        services = [program for program in system.programs if program.name == "service"]
        for service in services * 3:
            more()
            assert service.stop() == 0
            more()
            service.start()
            wait_until(system.ready, what="both instances")
        more()
        stack.close()
        assert {status for poster in posters for status in poster.statuses} == {202}
        promised = [job_id for poster in posters for job_id in poster.promised]
        assert len(set(promised)) == len(promised)
        finished = re.compile(r'^async_email_jobs\{status="sent"\} (\S+)$', re.MULTILINE)

        def sent() -> float:
            (number,) = finished.findall(system.inside("/1/metrics").body.decode())
            return float(number)

        wait_until(lambda: sent() == len(promised), 60, "the mails")
        mails = Counter(taken.message_id for taken in system.relay.taken)
        assert mails == Counter(f"<{job_id}@example.org>" for job_id in promised)


def write_certificate(nginx: Nginx, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("mail.example.org", "127.0.0.1")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(nginx.folder / "tls/fullchain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(nginx.folder / "tls/privkey.pem"))


@pytest.fixture
def with_tls(system: Proxied, authority: trustme.CA) -> Iterator[Nginx]:
    with tempfile.TemporaryDirectory(prefix="nginx-", dir="/tmp") as name:
        nginx = Nginx(Path(name), system.nginx.sockets, tls=free_port())
        nginx.write()
        write_certificate(nginx, authority)
        nginx.start()
        yield nginx
        nginx.stop()


def test_plain_http_is_sent_to_https(with_tls: Nginx) -> None:
    for name in ("mail.example.org", "other.example", "127.0.0.1"):
        answer = with_tls.speak("POST", "/start-job?a=b", ADA, {"Host": name})
        assert answer.status == 308
        assert answer.headers["Location"] == "https://mail.example.org/start-job?a=b"
    nameless = with_tls.raw(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert nameless.status == 308
    challenge = with_tls.folder / "acme/.well-known/acme-challenge/token"
    challenge.parent.mkdir(parents=True)
    challenge.write_text("proof")
    assert with_tls.speak("GET", "/.well-known/acme-challenge/token").body == b"proof"


def test_the_first_certificate_can_be_had_without_one(nginx: Nginx) -> None:
    challenge = nginx.folder / "acme/.well-known/acme-challenge/token"
    challenge.parent.mkdir(parents=True)
    challenge.write_text("proof")
    assert nginx.speak("GET", "/.well-known/acme-challenge/token").body == b"proof"
    shutil.rmtree(nginx.folder / "acme")


def test_https_has_all_that_http_has(with_tls: Nginx, trust: ssl.SSLContext) -> None:
    def speak(method: str, path: str, body: bytes | None = None) -> tuple[Answer, ssl.SSLSocket]:
        connection = http.client.HTTPSConnection("127.0.0.1", with_tls.tls, timeout=20, context=trust)
        connection.request(method, path, body, JSON if body else {})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        assert isinstance(connection.sock, ssl.SSLSocket)
        return answer, connection.sock

    answer, connection = speak("POST", "/start-job", ADA)
    with connection:
        assert connection.version() == "TLSv1.3"
    assert answer.status == 202
    assert answer.headers["Location"].startswith("/jobs/")
    assert answer.headers.get_all("Strict-Transport-Security") == ["max-age=63072000"]
    check_safe(answer)
    closed, connection = speak("GET", "/metrics")
    connection.close()
    check_problem(closed, 404, "not-found")
    assert closed.headers["Strict-Transport-Security"] == "max-age=63072000"
    wait_until(lambda: with_tls.logged()[-1]["tls"] == "TLSv1.3")
    plain = ask(f"http://127.0.0.1:{with_tls.tls}/")
    check_problem(plain, 400, "bad-request")
