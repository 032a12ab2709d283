"""``async-email``: the operator's command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console

from console.client import Client
from console.demo import run_demo
from console.doctor import Verdict, examine
from console.jobs import picture, read_job, send_job, watch_job
from console.keys import list_keys, print_new_key, revoke_key
from console.operator import resolve_job
from console.server.commands import backup, install, restore, uninstall, upgrade
from console.server.configuration import (
    FIRST_SOCKET,
    INSTALLED_DOTENV,
    installed_source,
    is_installed,
)
from console.server.systemd import MOST_INSTANCES
from mailjob.errors import AsyncEmailError, ConsoleError, SettingsError
from mailjob.lifecycle import Status
from mailjob.settings import LedgerSettings, ServiceSettings, Source, read_settings
from service.schema import parse_address

EX_FAILED: Final = 1
EX_CONFIG: Final = 78  # sysexits.h

OPERATING: Final = frozenset({"doctor", "keys", "resolve"})
"""Commands that are about the system installed on this server, unless the folder has a ``.env``."""

SERVER_COMMANDS: Final = {
    "install": install,
    "upgrade": upgrade,
    "backup": backup,
    "restore": restore,
    "uninstall": uninstall,
}

KEY_VARIABLE: Final = "ASYNC_EMAIL_KEY"


def main() -> int:
    """Exit status 0 when the command did what it says, else 1; 78 for wrong settings."""
    arguments = _parser().parse_args()
    screen = Console()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # by an exception: what was begun is tidied up
    try:
        return _run(arguments, screen)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"async-email: {problem}\n")
        return EX_CONFIG
    except AsyncEmailError as error:
        sys.stderr.write(f"async-email: {error}\n")
        return EX_FAILED
    except KeyboardInterrupt:
        return EX_FAILED


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _run(arguments: argparse.Namespace, screen: Console) -> int:
    dotenv = _own_dotenv()
    source = Source(os.environ, dotenv)
    if _is_about_this_server() and arguments.command in OPERATING:
        source, dotenv = installed_source(os.environ), INSTALLED_DOTENV
    match arguments.command:
        case "demo":
            run_demo(screen, once=arguments.once)
        case "send":
            client = _client(arguments, source)
            key = arguments.idempotency_key
            screen.print(send_job(client, arguments.name, arguments.email, key), highlight=False)
        case "status":
            client = _client(arguments, source)
            watched = arguments.watch
            read = watch_job(client, arguments.id, screen) if watched else read_job(client, arguments.id)
            screen.print(picture(read))
            return EX_FAILED if watched and read["status"] != Status.SENT else 0
        case "resolve":
            settings = read_settings(LedgerSettings, source)
            decision = "sent" if arguments.sent else "resend"
            resolve_job(settings.redis_url, arguments.id, decision, settings.job_retention)
            screen.print(f"{arguments.id} is resolved: {decision}", highlight=False)
        case "doctor":
            return _doctor(arguments, source, dotenv, screen)
        case "install" | "upgrade" | "backup" | "restore" | "uninstall" as name:
            SERVER_COMMANDS[name](arguments, screen)
        case "keys":
            _keys(arguments, read_settings(LedgerSettings, source).redis_url, screen)
    return 0


def _own_dotenv() -> Path:
    """The ``.env`` of the folder we are in, where we may look."""
    return Path(".env") if os.access(".", os.X_OK) else Path("/nonexistent")


def _is_about_this_server() -> bool:
    """Whether a system is installed here, and the folder has no other one's settings."""
    dotenv = _own_dotenv()
    return is_installed() and (not dotenv.exists() or dotenv.resolve() == INSTALLED_DOTENV)


def _doctor(arguments: argparse.Namespace, source: Source, dotenv: Path, screen: Console) -> int:
    """Status 1 when something failed, 0 also with warnings."""
    if arguments.send_to is not None:
        try:
            arguments.send_to = parse_address(arguments.send_to)
        except ValueError as error:
            raise ConsoleError(f"--send-to {error}") from error
    findings = []
    for finding in examine(source, dotenv, arguments.send_to):
        findings.append(finding)
        if not arguments.json:
            screen.print(finding.as_line(), highlight=False, markup=False, soft_wrap=True)
    if arguments.json:
        sys.stdout.write(json.dumps([finding.as_dict() for finding in findings], indent=1) + "\n")
    return EX_FAILED if any(finding.verdict is Verdict.FAILED for finding in findings) else 0


def _keys(arguments: argparse.Namespace, redis_url: str, screen: Console) -> None:
    match arguments.action:
        case "create":
            print_new_key(redis_url, arguments.name, screen)
        case "list":
            list_keys(redis_url, screen)
        case "revoke":
            revoke_key(redis_url, arguments.id, screen)


def _client(arguments: argparse.Namespace, source: Source) -> Client:
    """Where the API is: the flag, else on a server its socket or (not root) Nginx, else the setting.

    The key: a file, else a variable.
    """
    url = arguments.url
    if url is None and _is_about_this_server():
        url = f"unix:{FIRST_SOCKET}" if os.geteuid() == 0 else "http://127.0.0.1"
    elif url is None:
        bind = read_settings(ServiceSettings, source).api_bind
        url = str(bind) if bind.path else f"http://{bind}"
    key = os.environ.get(KEY_VARIABLE)
    if arguments.key_file is not None:
        try:
            key = arguments.key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConsoleError(f"the key file cannot be read: {error}") from error
    return Client(url, key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="async-email", description="The Async Email System's command.")
    parser.add_argument("--version", action="version", version=version("async-email"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser("demo", help="run the whole system here, with nothing but Python")
    demo.add_argument("--once", action="store_true", help="end when the sample mail is sent")

    api = argparse.ArgumentParser(add_help=False)
    api.add_argument("--url", help="the API: http://host:port or unix:/path (default: from API_BIND)")
    api.add_argument(
        "--key-file", type=Path, help=f"file with the API key (default: the variable {KEY_VARIABLE})"
    )
    send = commands.add_parser("send", parents=[api], help="post a job; prints its id")
    send.add_argument("--name", required=True)
    send.add_argument("--email", required=True)
    send.add_argument("--idempotency-key")
    status = commands.add_parser("status", parents=[api], help="show what became of a job")
    status.add_argument("id")
    status.add_argument(
        "--watch", action="store_true", help="until it is finished; status 0 only when it was sent"
    )

    resolve = commands.add_parser("resolve", help="decide what became of an uncertain job")
    resolve.add_argument("id")
    decision = resolve.add_mutually_exclusive_group(required=True)
    decision.add_argument("--sent", action="store_true", help="the mail arrived")
    decision.add_argument("--resend", action="store_true", help="it did not: send it again")

    keys = commands.add_parser("keys", help="make, list and revoke API keys")
    actions = keys.add_subparsers(dest="action", required=True, metavar="action")
    create = actions.add_parser("create", help="make a key; it is printed this once")
    create.add_argument("name", nargs="?", default="unnamed", help="what it is for")
    actions.add_parser("list", help="show all keys, without their secrets")
    revoke = actions.add_parser("revoke", help="make a key useless")
    revoke.add_argument("id")
    doctor = commands.add_parser("doctor", help="look at everything mail depends on; say what to do")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.add_argument(
        "--send-to", metavar="ADDRESS", help="hand the relay a test mail for this address"
    )
    _add_server_commands(commands)
    return parser


def _instances(text: str) -> int:
    if not 1 <= (number := int(text)) <= MOST_INSTANCES:
        raise argparse.ArgumentTypeError(f"1 to {MOST_INSTANCES}")
    return number


def _add_server_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    changing = argparse.ArgumentParser(add_help=False)
    changing.add_argument("--dry-run", action="store_true", help="only say what would be changed")
    packages = argparse.ArgumentParser(add_help=False)
    packages.add_argument(
        "--wheels", type=Path, help="a folder with all packages: nothing is downloaded"
    )
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--env", type=Path, help="the .env of an old system, to take over")
    settings.add_argument("--services", type=_instances, help="processes of the API (as now, or 2)")
    settings.add_argument("--consumers", type=_instances, help="consumers (as now, or 1)")
    for name in ("host", "port", "username", "tls"):
        settings.add_argument(f"--smtp-{name}", help=f"SMTP_{name.upper()}")
    settings.add_argument("--smtp-password-file", type=Path, help="a file with SMTP_PASSWORD")
    settings.add_argument("--mail-from", help="MAIL_FROM")
    commands.add_parser(
        "install",
        parents=[changing, packages, settings],
        help="put the system on this server (root); again changes nothing",
    )
    commands.add_parser(
        "upgrade",
        parents=[changing, packages, settings],
        help="let this checkout run in place of what is installed (root)",
    )
    save = commands.add_parser("backup", help="save configuration and ledger while all goes on (root)")
    save.add_argument("file", type=Path, help="where to; - for standard output")
    back = commands.add_parser(
        "restore", parents=[packages], help="install from a backup, on an empty server (root)"
    )
    back.add_argument("file", type=Path)
    remove = commands.add_parser("uninstall", parents=[changing], help="take it away again (root)")
    remove.add_argument("--purge", action="store_true", help="the configuration too")


if __name__ == "__main__":
    sys.exit(main())
