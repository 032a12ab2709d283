"""The API's routes, and the one place where errors become answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Quart, Response, request
from werkzeug.exceptions import HTTPException

from mailjob import meters
from mailjob.errors import BacklogFullError, IdempotencyConflictError, LedgerUnavailableError
from mailjob.job import Job, encode_body, encode_recipients, is_job_id, new_job_id
from mailjob.ledger import Ledger
from mailjob.lifecycle import Status
from mailjob.records import Idempotency
from service.authentication import Authenticator
from service.observation import CURRENT
from service.presentation import accepted, consumers, present
from service.problems import CONTENT_TYPE, Problem, backlog_full, ledger_unavailable
from service.schema import parse_idempotency_key, parse_start_job
from service.submission import Submission

JSON: Final = "application/json"

DETAILS: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.REQUEST_TIMEOUT: "The request's body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The request's body is larger than 64 KiB.",
}
"""What to say for errors that Quart finds, where its own words do not help."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """What the routes stand on. ``authenticator`` is None where API_AUTH=off."""

    ledger: Ledger
    submission: Submission
    authenticator: Authenticator | None
    broker_up: Callable[[], bool]


def add_routes(app: Quart, parts: Parts) -> None:
    """The routes, one function each. Not as a blueprint: Quart looks for its hooks at every request."""

    async def authenticate() -> str:
        if parts.authenticator is None:
            return ""
        return await parts.authenticator.check(request.headers.get("Authorization"))

    @app.post("/start-job")
    async def start_job() -> Response:
        client = await authenticate()
        if request.mimetype != JSON:
            raise Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                f"The body must be JSON, sent with Content-Type: {JSON}.",
            )
        job = parse_start_job(CURRENT.get().whole_body(), new_job_id())
        idempotency = _idempotency(request.headers.get("Idempotency-Key"), client, job)
        result = await parts.submission.submit(job, idempotency)
        CURRENT.get().job_id = result.job_id
        answer = _json(accepted(result.job_id), HTTPStatus.ACCEPTED)
        answer.headers["Location"] = f"/jobs/{result.job_id}"
        if result.replayed:
            answer.headers["Idempotent-Replayed"] = "true"
        return answer

    @app.get("/jobs/<job_id>")
    async def job(job_id: str) -> Response:
        await authenticate()
        record = await parts.ledger.read(job_id) if is_job_id(job_id) else None
        if record is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "unknown-job",
                "There is no job with this id: it was never accepted, or was finished long ago.",
            )
        CURRENT.get().job_id = job_id
        waits = None
        if record.status is Status.QUEUED:
            waits = consumers(await parts.ledger.census())
        return _json(present(record, waits), HTTPStatus.OK)

    @app.get("/metrics")
    async def metrics() -> Response:
        try:
            census = await parts.ledger.census()
        except LedgerUnavailableError:
            meters.LEDGER_UP.set(0)
        else:
            meters.show_census(census)
        return Response(generate_latest(meters.REGISTRY), content_type=CONTENT_TYPE_LATEST)

    @app.get("/livez")
    async def livez() -> Response:
        return _json({"status": "alive"}, HTTPStatus.OK)

    @app.get("/readyz")
    async def readyz() -> Response:
        """Ready means: a job can be accepted. Without the broker it can; its mail goes out later."""
        checks = {"ledger": "ok", "broker": "ok" if parts.broker_up() else "down: mail is delayed"}
        status = HTTPStatus.OK
        try:
            await parts.ledger.probe()
            checks["durability"] = await _durability(parts.ledger)
            checks["consumers"] = consumers(await parts.ledger.census())
        except LedgerUnavailableError as error:
            checks["ledger"] = str(error)
            status = HTTPStatus.SERVICE_UNAVAILABLE
        ready = "ready" if status is HTTPStatus.OK else "not ready"
        return _json({"status": ready, "checks": checks}, status)


async def _durability(ledger: Ledger) -> str:
    problems = await ledger.durability()
    meters.LEDGER_DURABLE.set(not problems)
    return "; ".join([*problems, "accepted jobs can be lost"]) if problems else "ok"


def _idempotency(key: str | None, client: str, job: Job) -> Idempotency | None:
    """Keys are the client's own: two clients may use the same one."""
    if key is None:
        return None
    scoped = f"{client}\n{parse_idempotency_key(key)}".encode()
    asked = encode_body(job.body) + encode_recipients(job.recipients)
    return Idempotency(
        key=hashlib.sha256(scoped).hexdigest(), fingerprint=hashlib.sha256(asked).hexdigest()
    )


def _json(document: object, status: HTTPStatus) -> Response:
    return Response(msgspec.json.encode(document) + b"\n", status=status, content_type=JSON)


async def answer_problem(problem: Problem) -> Response:
    body = problem.to_json(CURRENT.get().request_id)
    answer = Response(body, status=problem.status, content_type=CONTENT_TYPE)
    for name, value in problem.headers:
        answer.headers[name] = value
    return answer


async def answer_ledger_unavailable(error: LedgerUnavailableError) -> Response:
    log.warning("ledger_unavailable", error=str(error))
    meters.LEDGER_UP.set(0)
    return await answer_problem(ledger_unavailable(reading=request.method == "GET"))


async def answer_full(error: BacklogFullError) -> Response:
    meters.BACKLOG_FULL.inc()
    return await answer_problem(backlog_full(str(error)))


async def answer_conflict(error: IdempotencyConflictError) -> Response:
    return await answer_problem(
        Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-conflict", str(error) + ".")
    )


async def answer_http_exception(error: HTTPException) -> Response:
    """Quart's own errors: 400, 404, 405, 408, 413 and so on."""
    status = HTTPStatus(error.code or 500)
    kind = status.phrase.lower().replace(" ", "-").replace("'", "")
    headers = [
        (name, value) for name, value in error.get_headers() if name.lower() in {"allow", "retry-after"}
    ]
    detail = DETAILS.get(status) or error.description or status.description or status.phrase
    return await answer_problem(Problem(status, kind, detail, headers=headers))


async def answer_unexpected(error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return await answer_problem(
        Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal-error",
            "Something broke here; the log has it under this request_id.",
        )
    )
