"""``async-email install``, ``upgrade``, ``backup``, ``restore``, ``uninstall``: from words to steps."""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.prompt import Prompt

from console.server.backup import APPEND_ONLY, LEDGER_IS_BACK, RESTORING, unpacked, write_backup
from console.server.configuration import CONFIGURATION, Configuration, gather, is_installed
from console.server.plan import USER, first_key, installation, need_a_server, removal
from console.server.redis import emptied, filled, need_empty
from console.server.release import CURRENT, HOME, Release
from console.server.steps import Folder, Gone, Step, Text, User, carry_out
from console.server.systemd import Size
from mailjob.errors import ConsoleError

ASKED: Final = {
    "SMTP_HOST": "the relay's host name",
    "SMTP_USERNAME": "user name for the relay (empty: none)",
    "SMTP_PASSWORD": "its password",
    "MAIL_FROM": "who the mail is from (empty: the user name)",
}


def install(arguments: Namespace, screen: Console) -> None:
    """Also the upgrade: the same plan, from a newer checkout. Raises ConsoleError, SettingsError."""
    _need_root()
    need_a_server()
    if RESTORING.exists():
        raise ConsoleError("a restore was interrupted here: run it again")
    os.umask(0o022)  # what is installed is there for the service's user; secrets have modes of their own
    flags = {
        "SMTP_HOST": arguments.smtp_host,
        "SMTP_PORT": arguments.smtp_port,
        "SMTP_USERNAME": arguments.smtp_username,
        "SMTP_PASSWORD": _secret(arguments.smtp_password_file),
        "SMTP_TLS": arguments.smtp_tls,
        "MAIL_FROM": arguments.mail_from,
    }
    configuration = gather(CONFIGURATION, arguments.env, flags)
    if not configuration.values.get("SMTP_HOST") and sys.stdin.isatty():
        configuration = _ask(configuration)
    configuration.check()
    for name in configuration.ignored:
        screen.print(f"not taken over: {name} is no setting of this system", highlight=False)
    steps = installation(
        configuration,
        Release(arguments.wheels),
        Size.wanted(arguments.services, arguments.consumers),
    )
    changes = _carry_out(steps, screen, dry=arguments.dry_run)
    if arguments.dry_run:
        if changes:
            _say(screen, "and what follows from it: Redis, systemd or Nginx reads its files anew, and")
            _say(screen, "instances are restarted one after the other")
        return
    if not changes:
        screen.print("nothing to change")
    if (key := first_key("first key")) is not None:
        screen.print("The first API key. It is shown this once:", highlight=False)
        screen.print(key, highlight=False, soft_wrap=True)


def upgrade(arguments: Namespace, screen: Console) -> None:
    """The plan of ``install``, for what is installed. Raises ConsoleError, SettingsError."""
    if not CURRENT.is_symlink():
        raise ConsoleError("nothing is installed here: ./run install")
    install(arguments, screen)


def backup(arguments: Namespace, screen: Console) -> None:
    """To standard output where the file is ``-``. Raises ConsoleError."""
    _need_root()
    file: Path = arguments.file
    try:
        if str(file) != "-":
            _write_whole(file)
            _say(screen, f"{file}: it holds the secrets of this system; keep it like a password")
        elif sys.stdout.isatty():
            raise ConsoleError("a backup is no text for a terminal: give a file, or pipe it")
        else:
            write_backup(sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except OSError as error:
        raise ConsoleError(f"the backup cannot be made: {error}") from error


def _write_whole(file: Path) -> None:
    """All of it or nothing, for root alone."""
    if file.is_dir() or not file.name:
        raise ConsoleError(f"{file} is a folder: give a file")
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)  # of mode 600
    try:
        with os.fdopen(handle, "wb") as new:
            write_backup(new)
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


def restore(arguments: Namespace, screen: Console) -> None:
    """Also installs: for a machine that has neither the system nor a ledger. Raises ConsoleError."""
    _need_root()
    need_a_server()
    again = RESTORING.exists()
    if not again:
        if is_installed():
            raise ConsoleError(f"{CONFIGURATION} is there: a backup is restored on an empty machine")
        need_empty()
    os.umask(0o022)
    release = Release(arguments.wheels)
    with unpacked(arguments.file) as saved:
        gather(saved.configuration, None, {}).check()
        _carry_out([User(USER), Folder(HOME), release], screen)
        if not again or RESTORING.read_text(encoding="utf-8") != LEDGER_IS_BACK:
            if again:
                _carry_out([emptied(APPEND_ONLY)], screen)
            saved.put_configuration_back()
            ledger = [filled(saved.put_ledger_back), Text(RESTORING, LEDGER_IS_BACK, 0o600)]
        else:
            ledger = []
        _carry_out(installation(gather(CONFIGURATION, None, {}), release, saved.size, ledger), screen)
        _carry_out([Gone(RESTORING)], screen)
    _say(screen, "Jobs that were unfinished when the backup was made are sent now.")


def uninstall(arguments: Namespace, screen: Console) -> None:
    _need_root()
    steps = removal(purge=arguments.purge)
    _carry_out(steps, screen, dry=arguments.dry_run)
    if not arguments.purge:
        screen.print(f"kept: {CONFIGURATION} (--purge removes it)", highlight=False)
    screen.print("kept: Redis with its drop-in and the jobs; docs/deploy.md says how to end it")


def _ask(configuration: Configuration) -> Configuration:
    """What is missing, from the person at the terminal."""
    answers = {
        name: Prompt.ask(words, default="", show_default=False, password=name == "SMTP_PASSWORD")
        for name, words in ASKED.items()
        if not configuration.values.get(name)
    }
    return Configuration({**configuration.values, **answers}, configuration.ignored)


def _secret(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConsoleError(f"the password file cannot be read: {error}") from error


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ConsoleError("this is for root alone")


def _carry_out(steps: Sequence[Step], screen: Console, *, dry: bool = False) -> int:
    return carry_out(steps, dry=dry, say=lambda words: _say(screen, words))


def _say(screen: Console, words: str) -> None:
    screen.print(words, highlight=False, soft_wrap=True, markup=False)
