"""The API's routes but for the hot one, which is in ``start_job``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Quart, Response, request

from mailjob import meters
from mailjob.errors import LedgerUnavailableError
from mailjob.job import is_job_id
from mailjob.ledger import Ledger
from mailjob.lifecycle import Status
from service.answers import Answer, json_answer, problem_answer
from service.authentication import Authenticator
from service.observation import CURRENT
from service.presentation import consumers, present
from service.problems import Problem


@dataclass(frozen=True)
class Parts:
    """What the routes stand on. ``authenticator`` is None where API_AUTH=off."""

    ledger: Ledger
    authenticator: Authenticator | None
    broker_up: Callable[[], bool]


def add_routes(app: Quart, parts: Parts) -> None:
    """The routes, one function each. Not as a blueprint: Quart looks for its hooks at every request."""

    async def authenticate() -> str:
        if parts.authenticator is None:
            return ""
        return await parts.authenticator.check(request.headers.get("Authorization"))

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


def _response(answer: Answer) -> Response:
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    response.headers.extend(answer.headers)
    return response


def _json(document: object, status: HTTPStatus) -> Response:
    return _response(json_answer(document, status))


async def answer_error(error: Exception) -> Response:
    """Whatever a route or Quart raises."""
    reading = request.method == "GET"
    return _response(problem_answer(error, CURRENT.get().request_id, reading=reading))
