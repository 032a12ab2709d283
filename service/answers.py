"""Answers as bytes, and the one place where errors become answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from werkzeug.exceptions import HTTPException

from mailjob import meters
from mailjob.errors import BacklogFullError, IdempotencyConflictError, LedgerUnavailableError
from service.problems import CONTENT_TYPE, Problem, backlog_full, ledger_unavailable

JSON: Final = "application/json"

DETAILS: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.REQUEST_TIMEOUT: "The request's body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The request's body is larger than 64 KiB.",
}
"""What to say for errors that Quart finds, where its own words do not help."""

log = structlog.get_logger()


KINDS: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request-entity-too-large",
    HTTPStatus.REQUEST_URI_TOO_LONG: "request-uri-too-long",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "requested-range-not-satisfiable",
}
"""Whose phrases are not the same in every Python."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    content_type: str = JSON


def json_answer(document: object, status: HTTPStatus, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    return Answer(status, msgspec.json.encode(document) + b"\n", headers)


def problem_answer(error: Exception, request_id: str, *, reading: bool) -> Answer:
    """``reading``: the request would have changed nothing."""
    problem = _problem(error, reading=reading)
    return Answer(problem.status, problem.to_json(request_id), problem.headers, CONTENT_TYPE)


def _problem(error: Exception, *, reading: bool) -> Problem:
    match error:
        case Problem():
            return error
        case LedgerUnavailableError():
            log.warning("ledger_unavailable", error=str(error))
            meters.LEDGER_UP.set(0)
            return ledger_unavailable(reading=reading)
        case BacklogFullError():
            meters.BACKLOG_FULL.inc()
            return backlog_full(str(error))
        case IdempotencyConflictError():
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-conflict", f"{error}.")
        case HTTPException():
            return _of_quart(error)
        case _:
            log.error("request_failed", exc_info=error)
            return Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "internal-error",
                "Something broke here; the log has it under this request_id.",
            )


def _of_quart(error: HTTPException) -> Problem:
    """Quart's own errors: 400, 404, 405, 408, 413 and so on."""
    status = HTTPStatus(error.code or 500)
    kind = KINDS.get(status) or status.phrase.lower().replace(" ", "-").replace("'", "")
    headers = [
        (name, value) for name, value in error.get_headers() if name.lower() in {"allow", "retry-after"}
    ]
    detail = DETAILS.get(status) or error.description or status.description or status.phrase
    return Problem(status, kind, detail, headers=headers)
