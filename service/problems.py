"""Errors as ``application/problem+json`` (RFC 9457), each with a stable ``type``. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import msgspec

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:async-email:problem:"


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request's body; ``pointer`` is a JSON pointer (RFC 6901)."""

    pointer: str
    detail: str


class Problem(Exception):  # noqa: N818 - the name the RFC gives it
    """An answer that is an error. ``kind`` is the last part of its type and never changes."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = tuple(headers)

    def to_json(self, request_id: str) -> bytes:
        document: dict[str, object] = {
            "type": TYPE_PREFIX + self.kind,
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.faults:
            document["errors"] = self.faults
        return msgspec.json.encode(document) + b"\n"


def ledger_unavailable(*, reading: bool) -> Problem:
    again = "" if reading else " with the same Idempotency-Key if the job must not be made twice"
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "ledger-unavailable",
        f"The ledger cannot be used at the moment; try again{again}.",
        headers=[("Retry-After", "1")],
    )


def backlog_full(detail: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "backlog-full",
        f"The backlog is full: {detail}. Nothing was accepted; try again later.",
        headers=[("Retry-After", "10")],
    )
