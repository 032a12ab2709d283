"""API keys at the door: ``Authorization: Bearer ae_<id>_<secret>``."""

from __future__ import annotations

import hmac
import re
import time
from http import HTTPStatus
from typing import Final, Protocol

from mailjob.ledger import ApiKey, digest
from service.problems import Problem

CACHE_SECONDS: Final = 5.0
"""A revoked key works for at most this long."""

_MOST_CACHED = 10_000
_KEY = re.compile(r"ae_([0-9a-f]{12})_([0-9a-f]{64})")
_NO_SUCH_KEY = digest("")


class KeyFinder(Protocol):
    async def find(self, key_id: str) -> ApiKey | None: ...


class Authenticator:
    def __init__(self, keys: KeyFinder) -> None:
        self._keys = keys
        self._known: dict[str, tuple[float, ApiKey]] = {}

    async def check(self, authorization: str | None) -> str:
        """The id of the key that asks. Raises Problem 401, LedgerUnavailableError."""
        scheme, _, text = (authorization or "").partition(" ")
        match = _KEY.fullmatch(text.strip())
        if scheme.lower() != "bearer" or match is None:
            raise _unauthorized("An API key is needed: Authorization: Bearer ae_...")
        key_id, secret = match.groups()
        key = await self._find(key_id)
        # An unknown id takes as long as a wrong secret.
        if not hmac.compare_digest(key.digest if key else _NO_SUCH_KEY, digest(secret)):
            raise _unauthorized("This API key is not known, or was revoked.")
        return key_id

    async def _find(self, key_id: str) -> ApiKey | None:
        now = time.monotonic()
        known = self._known.get(key_id)
        if known is not None and known[0] > now:
            return known[1]
        self._known.pop(key_id, None)
        key = await self._keys.find(key_id)
        if key is not None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[key_id] = (now + CACHE_SECONDS, key)
        return key


def _unauthorized(detail: str) -> Problem:
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        detail,
        headers=[("WWW-Authenticate", 'Bearer realm="async-email"')],
    )
