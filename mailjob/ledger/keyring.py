"""API keys: made once, shown once, stored as a digest.

A key reads ``ae_<id>_<secret>``. The secret has 256 random bits, so a plain SHA-256 of it cannot be
searched and needs no slow hash.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

import msgspec

from mailjob.ledger.group_commit import GroupCommit

_KEYS = "mail:keys"


class ApiKey(msgspec.Struct, frozen=True):
    """What is stored of a key. ``created`` is in Unix seconds."""

    id: str
    name: str
    digest: str
    created: int


@dataclass(frozen=True, slots=True)
class NewKey:
    """``text`` is shown once and stored nowhere."""

    key: ApiKey
    text: str


class Keyring:
    """Raises LedgerUnavailableError like the ledger that it is a part of."""

    def __init__(self, commit: GroupCommit) -> None:
        self._commit = commit

    async def create(self, name: str) -> NewKey:
        key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
        key = ApiKey(id=key_id, name=name, digest=digest(secret), created=int(time.time()))
        await self._commit.call(("HSET", _KEYS, key_id, msgspec.json.encode(key)))
        return NewKey(key, f"ae_{key_id}_{secret}")

    async def find(self, key_id: str) -> ApiKey | None:
        stored = await self._commit.call(("HGET", _KEYS, key_id))
        return None if stored is None else msgspec.json.decode(stored, type=ApiKey)

    async def list(self) -> list[ApiKey]:
        stored = await self._commit.call(("HVALS", _KEYS))
        keys = [msgspec.json.decode(value, type=ApiKey) for value in stored]
        return sorted(keys, key=lambda key: key.created)

    async def revoke(self, key_id: str) -> bool:
        """False when there is no such key."""
        return bool(await self._commit.call(("HDEL", _KEYS, key_id)))


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
