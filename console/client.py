"""Speaks to the API over TCP or a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from mailjob.errors import ConsoleError

SECONDS: Final = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    document: Any


class Client:
    """``url`` is ``http://host:port``, ``https://host`` or ``unix:/path``."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None)

    def post(self, path: str, document: object, headers: Mapping[str, str] | None = None) -> Answer:
        return self._ask("POST", path, document, headers)

    def _ask(
        self, method: str, path: str, document: object, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises ConsoleError when nobody answers, or not in JSON."""
        sent = {"Accept": "application/json", **(headers or {})}
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        body = None
        if document is not None:
            body = json.dumps(document)
            sent["Content-Type"] = "application/json"
        connection = self._connect()
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), json.loads(response.read()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ConsoleError(f"the API at {self._url} does not answer: {error}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._url.startswith("unix:"):
            return _UnixConnection(self._url.removeprefix("unix:"))
        parts = urlsplit(self._url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.netloc, timeout=SECONDS)
        if parts.scheme != "http" or not parts.netloc:
            raise ConsoleError(f"{self._url} is no http://, https:// or unix:/ address")
        return http.client.HTTPConnection(parts.netloc, timeout=SECONDS)


def refusal(answer: Answer) -> ConsoleError:
    """An error answer in words."""
    document = answer.document if isinstance(answer.document, dict) else {}
    lines = [f"{answer.status} {document.get('detail', answer.document)}"]
    lines += [f"  {fault['pointer']}: {fault['detail']}" for fault in document.get("errors", [])]
    return ConsoleError("\n".join(lines))
