"""``POST /start-job``: the one hot route.

It is answered from the request's headers and body alone, without Quart's request and its contexts,
which would take longer than everything that is done here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from werkzeug.exceptions import MethodNotAllowed

from mailjob.job import Job, encode_body, encode_recipients, new_job_id
from mailjob.records import Idempotency
from service.answers import JSON, Answer, json_answer
from service.authentication import Authenticator
from service.observation import Exchange
from service.presentation import accepted
from service.problems import Problem
from service.schema import parse_idempotency_key, parse_start_job
from service.submission import Submission

PATH: Final = "/start-job"


class StartJob:
    """``authenticator`` is None where API_AUTH=off."""

    def __init__(self, submission: Submission, authenticator: Authenticator | None) -> None:
        self._submission = submission
        self._authenticator = authenticator

    async def __call__(self, method: str, headers: Mapping[bytes, bytes], exchange: Exchange) -> Answer:
        """Raises Problem, LedgerUnavailableError, and the other errors of accepting."""
        if method != "POST":
            raise MethodNotAllowed(["POST"])
        client = ""
        if self._authenticator is not None:
            client = await self._authenticator.check(_text(headers, b"authorization"))
        kind = _text(headers, b"content-type") or ""
        if kind.partition(";")[0].strip().lower() != JSON:
            raise Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                f"The body must be JSON, sent with Content-Type: {JSON}.",
            )
        job = parse_start_job(exchange.whole_body(), new_job_id())
        idempotency = _idempotency(_text(headers, b"idempotency-key"), client, job)
        result = await self._submission.submit(job, idempotency)
        exchange.job_id = result.job_id
        sent = [("Location", f"/jobs/{result.job_id}")]
        if result.replayed:
            sent.append(("Idempotent-Replayed", "true"))
        return json_answer(accepted(result.job_id), HTTPStatus.ACCEPTED, sent)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _idempotency(key: str | None, client: str, job: Job) -> Idempotency | None:
    """Keys are the client's own: two clients may use the same one."""
    if key is None:
        return None
    scoped = f"{client}\n{parse_idempotency_key(key)}".encode()
    asked = encode_body(job.body) + encode_recipients(job.recipients)
    return Idempotency(
        key=hashlib.sha256(scoped).hexdigest(), fingerprint=hashlib.sha256(asked).hexdigest()
    )
