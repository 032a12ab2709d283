"""The ``async-email`` command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from programs import Program, ask, wait_until
from relay import CLOSE
from system_under_test import System, metrics


def console(
    *arguments: str, system: System | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "160", **variables}
    if system is not None:
        environment |= system.settings
    return subprocess.run(
        [sys.executable, "-m", "console", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_send_and_status(system: System) -> None:
    system.start("service")
    system.start("consumer")
    sent = console("send", "--name", "Ada", "--email", "ada@example.org", system=system)
    assert sent.returncode == 0, sent.stderr
    job_id = sent.stdout.strip()
    shown = console("status", job_id, "--watch", system=system)
    assert shown.returncode == 0, shown.stderr
    for words in (job_id, "sent", "ada@example.org", "250 2.0.0 taken", "accepted"):
        assert words in shown.stdout


def test_watching_a_job_that_fails_ends_with_1(system: System) -> None:
    system.relay.answers = {"RCPT": ["550 no such user"]}
    system.start("service")
    system.start("consumer")
    shown = console("status", system.accept(), "--watch", system=system)
    assert shown.returncode == 1
    assert "550 no such user" in shown.stdout


def test_refusals_are_told_in_the_apis_words(system: System) -> None:
    system.start("service")
    sent = console("send", "--name", "", "--email", "nobody", system=system)
    assert sent.returncode == 1
    assert "/email: " in sent.stderr
    shown = console("status", "x", system=system)
    assert shown.returncode == 1
    assert "404 There is no job with this id" in shown.stderr


def test_nobody_answers(system: System) -> None:
    shown = console("status", "x", system=system)
    assert shown.returncode == 1
    assert f"the API at {system.api} does not answer" in shown.stderr


def test_keys_open_a_guarded_api(system: System) -> None:
    system.settings["API_AUTH"] = "keys"
    system.start("service")
    made = console("keys", "create", "shop", system=system)
    key = made.stdout.strip()
    assert made.returncode == 0
    assert key.startswith("ae_")
    assert key not in made.stderr

    listed = console("keys", "list", system=system)
    key_id = key.split("_")[1]
    assert key_id in listed.stdout
    assert "shop" in listed.stdout
    assert key.split("_")[2] not in listed.stdout

    arguments = ("send", "--name", "Ada", "--email", "ada@example.org")
    assert "401" in console(*arguments, system=system).stderr
    assert console(*arguments, system=system, ASYNC_EMAIL_KEY=key).returncode == 0
    key_file = system.folder / "key"
    key_file.write_text(key + "\n")
    assert console(*arguments, "--key-file", str(key_file), system=system).returncode == 0

    assert console("keys", "revoke", key_id, system=system).returncode == 0
    again = console("keys", "revoke", key_id, system=system)
    assert again.returncode == 1
    assert "there is no key" in again.stderr


def test_a_unix_socket_is_found_by_the_settings(system: System) -> None:
    system.settings["API_BIND"] = f"unix:{system.folder / 'api.sock'}"
    program = Program("service", system.folder, system.settings)
    system.programs.append(program)
    wait_until(lambda: program.log_file.exists() and program.logged("service_starting"))
    wait_until(
        lambda: console("send", "--name", "A", "--email", "a@b.org", system=system).returncode == 0
    )


def test_an_uncertain_job_is_resolved_by_a_person(system: System) -> None:
    system.settings["AMBIGUOUS_POLICY"] = "hold"
    system.relay.answers = {"CONTENT": [CLOSE, CLOSE, "250 taken"]}
    system.start("service")
    system.start("consumer")
    arrived, lost = system.accept(), system.accept()
    for job_id, decision in ((arrived, "--sent"), (lost, "--resend")):
        system.wait_for(job_id, "uncertain")
        assert console("resolve", job_id, decision, system=system).returncode == 0
        assert system.wait_for(job_id, "sent")
    again = console("resolve", arrived, "--resend", system=system)
    assert again.returncode == 1
    assert "is sent; only an uncertain job" in again.stderr


def test_a_full_backlog_is_503(system: System) -> None:
    system.settings["MAX_PENDING"] = "3"
    system.start("service")
    for _ in range(3):
        system.accept()
    full = system.post()
    assert full.status == 503
    assert full.headers["Retry-After"] == "10"
    assert full.json["type"] == "urn:async-email:problem:backlog-full"
    assert metrics(system.settings["API_BIND"])["async_email_backlog_full_total"] == 1
    system.start("consumer")
    wait_until(lambda: system.post().status == 202)


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("keys",)])
def test_wrong_commands_show_how(arguments: tuple[str, ...]) -> None:
    shown = console(*arguments)
    assert shown.returncode == 2
    assert "usage: async-email" in shown.stderr


def test_the_demo_once() -> None:
    shown = console("demo", "--once")
    assert shown.returncode == 0, shown.stderr
    for words in ("ready", "status     sent", "Subject: Welcome, Ada Lovelace!", "Hello Ada Lovelace,"):
        assert words in shown.stdout
    assert "curl" not in shown.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_runs_until_it_is_stopped_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as stream:
        demo = subprocess.Popen(
            [sys.executable, "-u", "-m", "console", "demo"],
            env={"PATH": os.environ["PATH"], "COLUMNS": "400"},
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_until(lambda: "Ctrl-C" in output.read_text())
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        assert len(children) == 3
        line = next(line for line in output.read_text().splitlines() if "curl -i" in line)
        url = line.split("curl -i ")[1].split()[0]
        key = line.split("Bearer ")[1].split("'")[0]
        document = {"name": "Grace", "email": "grace@example.org"}
        assert ask(url, document, headers={"Authorization": f"Bearer {key}"}).status == 202
        wait_until(lambda: "Welcome, Grace!" in output.read_text())
    finally:
        demo.send_signal(number)
    assert demo.wait(30) == 0
    assert "nothing is left behind" in output.read_text()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_the_demo_finds_another_port() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        shown = console("demo", "--once")
    assert shown.returncode == 0, shown.stderr
    assert "API on http://127.0.0.1:" in shown.stdout
    assert "127.0.0.1:8000" not in shown.stdout
