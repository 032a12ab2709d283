"""``async-email demo``: the whole system on this machine, with nothing but Python.

An embedded Valkey, an SMTP server that keeps what it gets, the service and the consumer as the real
programs, and one job sent through them. Everything listens on loopback and lives in a temporary folder.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import queue
import signal
import tempfile
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from console.client import Client
from console.jobs import picture, send_job, wait_until_ready, watch_job
from console.keys import create_key
from console.neighbours import free_port, need_alive, need_extras, program, smtp_server, valkey
from mailjob.errors import ConsoleError

API_PORT: Final = 8000
READY_SECONDS: Final = 30.0
SENT_SECONDS: Final = 30.0
SAMPLE: Final = ("Ada Lovelace", "ada@example.org")


def run_demo(screen: Console, *, once: bool) -> None:
    """Start all, send the sample, show it; until Ctrl-C, or with ``once`` until it is sent.

    Raises ConsoleError when the sample is not sent.
    """
    need_extras()
    # SIGINT too: a shell that started us in the background had it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # Below /tmp, because the path of a unix socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="async-email-", dir="/tmp") as name,
        contextlib.suppress(KeyboardInterrupt),
        contextlib.ExitStack() as stack,
    ):
        _run_in(Path(name), stack, screen, once=once)
        return
    screen.print("\nstopped; nothing is left behind")


def _interrupt(_signal: int, _frame: Any) -> NoReturn:  # noqa: ANN401 - a frame, unused
    raise KeyboardInterrupt


def _run_in(folder: Path, stack: contextlib.ExitStack, screen: Console, *, once: bool) -> None:
    with screen.status("starting Valkey and an SMTP server"):
        redis_url = stack.enter_context(valkey(folder))
        smtp_port, mails = stack.enter_context(smtp_server())
    api = f"127.0.0.1:{free_port(API_PORT)}"
    _write_settings(folder / ".env", redis_url, smtp_port, api)
    with screen.status("starting the service and the consumer"):
        service = stack.enter_context(program("service", folder))
        consumer = stack.enter_context(program("consumer", folder))

        def alive() -> None:
            need_alive("service", service, folder)
            need_alive("consumer", consumer, folder)

        key = create_key(redis_url, "demo").text
        client = Client(f"http://{api}", key)
        wait_until_ready(client, alive, READY_SECONDS)
    screen.print(f"[green]ready[/]  API on http://{api}, SMTP on 127.0.0.1:{smtp_port}", highlight=False)

    job_id = send_job(client, *SAMPLE, idempotency_key=None)
    job = watch_job(client, job_id, screen, seconds=SENT_SECONDS)
    title = "the job, as GET /jobs/<id> tells it"
    screen.print(Panel(picture(job), title=title, border_style="dim"))
    if job["status"] != "sent":
        alive()
        raise ConsoleError(f"the sample job is {job['status']} after {SENT_SECONDS:.0f} s")
    _show_mail(screen, mails.get(timeout=SENT_SECONDS).content)
    if once:
        return
    screen.print("\nTry it yourself:\n")
    for command in _commands(api, key, job_id):
        screen.print(Text(f"  {command}\n"), soft_wrap=True)
    screen.print("Mail is shown here as it arrives. Ctrl-C stops everything.\n")
    while True:
        try:
            _show_mail(screen, mails.get(timeout=1.0).content)
        except queue.Empty:
            alive()


def _commands(api: str, key: str, job_id: str) -> list[str]:
    authorization = f"-H 'Authorization: Bearer {key}'"
    json = "-H 'Content-Type: application/json'"
    document = """'{"name": "Grace", "email": "grace@example.org"}'"""
    return [
        f"curl -i http://{api}/start-job {authorization} {json} -d {document}",
        f"curl http://{api}/jobs/{job_id} {authorization}",
        f"curl http://{api}/metrics",
    ]


def _show_mail(screen: Console, raw: bytes) -> None:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    lines = [f"{header}: {value}" for header, value in message.items()]
    part = message.get_body(("plain",))
    body = part.get_content() if part is not None else ""
    words = Text("\n".join(lines) + "\n\n" + body.rstrip())
    screen.print(Panel(words, title="the mail, as the SMTP server received it", border_style="dim"))


def _write_settings(path: Path, redis_url: str, smtp_port: int, api: str) -> None:
    path.touch(mode=0o600)
    path.write_text(
        f"REDIS_URL={redis_url}\nAPI_BIND={api}\nCONSUMER_METRICS_BIND=127.0.0.1:{free_port()}\n"
        f"SMTP_HOST=127.0.0.1\nSMTP_PORT={smtp_port}\nMAIL_FROM=Async Email <hello@example.org>\n",
        encoding="utf-8",
    )
