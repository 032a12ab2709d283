"""``async-email keys``: makes, lists and revokes API keys, in the ledger itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from console.operator import with_ledger
from mailjob.errors import ConsoleError
from mailjob.ledger import Keyring, NewKey

T = TypeVar("T")


def create_key(redis_url: str, name: str) -> NewKey:
    return _with_keyring(redis_url, lambda keyring: keyring.create(name))


def has_keys(redis_url: str) -> bool:
    return bool(_with_keyring(redis_url, lambda keyring: keyring.list()))


def print_new_key(redis_url: str, name: str, screen: Console) -> None:
    """The key alone on stdout, so that a script can take it; the advice on stderr."""
    new = create_key(redis_url, name)
    Console(stderr=True).print(
        f"Key {new.key.id} for {name!r}. It is shown this once; only its digest is stored."
    )
    screen.print(new.text, highlight=False, soft_wrap=True)


def list_keys(redis_url: str, screen: Console) -> None:
    table = Table("id", "name", "made", box=None)
    for key in _with_keyring(redis_url, lambda keyring: keyring.list()):
        made = datetime.fromtimestamp(key.created, UTC).isoformat(sep=" ", timespec="minutes")
        table.add_row(key.id, key.name, made)
    screen.print(table)


def revoke_key(redis_url: str, key_id: str, screen: Console) -> None:
    """Takes effect within the seconds for which the service remembers a key."""
    if not _with_keyring(redis_url, lambda keyring: keyring.revoke(key_id)):
        raise ConsoleError(f"there is no key {key_id}; `async-email keys list` shows them all")
    screen.print(f"revoked {key_id}", highlight=False)


def _with_keyring(redis_url: str, use: Callable[[Keyring], Awaitable[T]]) -> T:
    return with_ledger(redis_url, lambda ledger: use(ledger.keyring))
