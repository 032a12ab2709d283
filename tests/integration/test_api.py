"""The API on a real ledger, without the network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from ledger_server import LedgerServer
from quart.typing import TestClientProtocol as Client

from mailjob.job import is_job_id, new_job_id
from mailjob.ledger import Ledger
from mailjob.meters import REGISTRY
from mailjob.settings import ServiceSettings, Source, read_settings
from service.app import make_app

ADA = {"name": "Ada", "email": "ada@example.org"}
JSON = {"Content-Type": "application/json"}


def settings(server: LedgerServer, auth: str = "off") -> ServiceSettings:
    environ = {"REDIS_URL": server.url, "API_AUTH": auth, "LOG_LEVEL": "error"}
    return read_settings(ServiceSettings, Source(environ, Path("/nonexistent")))


@pytest.fixture
async def client(server: LedgerServer) -> AsyncIterator[Client]:
    async with make_app(settings(server)).test_app() as app:
        yield app.test_client()


@pytest.fixture
async def guarded(server: LedgerServer) -> AsyncIterator[Client]:
    async with make_app(settings(server, "keys")).test_app() as app:
        yield app.test_client()


async def problem(response: Any, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    document = cast(dict[str, Any], await response.get_json(force=True))
    assert document["type"] == f"urn:async-email:problem:{kind}"
    assert document["status"] == status
    assert document["request_id"] == response.headers["X-Request-ID"]
    return document


async def test_a_job_is_accepted_and_can_be_asked_for(client: Client) -> None:
    response = await client.post("/start-job", json=ADA)
    assert response.status_code == 202
    answer = await response.get_json()
    assert answer.keys() == {"job_id", "status", "status_url"}
    assert is_job_id(answer["job_id"])
    assert answer["status"] == "queued"
    assert answer["status_url"] == response.headers["Location"] == f"/jobs/{answer['job_id']}"

    response = await client.get(answer["status_url"])
    assert response.status_code == 200
    job = await response.get_json()
    assert job.keys() >= {
        "job_id",
        "status",
        "created_at",
        "updated_at",
        "attempts",
        "recipients",
        "next_attempt_at",
        "events",
    }
    assert job["status"] == "queued"
    assert job["recipients"] == [{"address": "ada@example.org", "status": "pending", "reply": None}]
    assert [event["event"] for event in job["events"]] == ["accepted"]


@pytest.mark.parametrize(
    "job_id", ["x", "..%2f..", "%00", "a" * 5000, new_job_id().upper(), new_job_id()]
)
async def test_unknown_and_malformed_ids_are_404(client: Client, job_id: str) -> None:
    response = await client.get(f"/jobs/{job_id}")
    await problem(response, 404, "not-found" if "%2f" in job_id else "unknown-job")


async def test_values_that_cannot_be_used_are_422(client: Client) -> None:
    response = await client.post("/start-job", json={"name": "", "email": "x", "more": 1})
    document = await problem(response, 422, "invalid-values")
    assert [fault["pointer"] for fault in document["errors"]] == ["/more", "/name", "/email"]


@pytest.mark.parametrize(
    ("data", "headers", "status", "kind"),
    [
        (b"{", JSON, 400, "invalid-json"),
        (b"", JSON, 400, "invalid-json"),
        (b'{"name":"\\ud800","email":"a@b.org"}', JSON, 400, "invalid-json"),
        (b"[" * 60_000, JSON, 400, "invalid-json"),
        (b"{}", {}, 415, "unsupported-media-type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        (
            b"name=Ada",
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
            "unsupported-media-type",
        ),
        (b" " * 70_000, JSON, 413, "request-entity-too-large"),
        (b"{}", {**JSON, "Idempotency-Key": ""}, 422, "invalid-values"),
    ],
)
async def test_bad_requests(
    client: Client, data: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    await problem(await client.post("/start-job", data=data, headers=headers), status, kind)


async def test_json_with_a_charset_is_json(client: Client) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = await client.post("/start-job", data=b'{"name":"A","email":"a@b.org"}', headers=headers)
    assert response.status_code == 202


async def test_quarts_own_errors_are_problems_too(client: Client) -> None:
    await problem(await client.get("/nothing"), 404, "not-found")
    response = await client.get("/start-job")
    await problem(response, 405, "method-not-allowed")
    assert "POST" in response.headers["Allow"]


async def test_request_ids_are_kept_where_harmless(client: Client) -> None:
    response = await client.get("/livez", headers={"X-Request-ID": "from-nginx.1"})
    assert response.headers["X-Request-ID"] == "from-nginx.1"
    response = await client.get("/livez", headers={"X-Request-ID": "evil id {}"})
    assert len(response.headers["X-Request-ID"]) == 32


class TestIdempotency:
    KEY = {"Idempotency-Key": "order-42"}

    async def test_the_same_request_gets_the_same_answer(self, client: Client) -> None:
        first = await client.post("/start-job", json=ADA, headers=self.KEY)
        again = await client.post("/start-job", json=dict(reversed(ADA.items())), headers=self.KEY)
        assert again.status_code == first.status_code == 202
        assert await again.get_json() == await first.get_json()
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"

    async def test_another_body_is_422(self, client: Client) -> None:
        await client.post("/start-job", json=ADA, headers=self.KEY)
        response = await client.post("/start-job", json={**ADA, "name": "Eve"}, headers=self.KEY)
        await problem(response, 422, "idempotency-conflict")

    async def test_fifty_at_once_are_one_job(self, client: Client, store: redis.Redis) -> None:
        responses = await asyncio.gather(
            *(client.post("/start-job", json=ADA, headers=self.KEY) for _ in range(50))
        )
        assert len({(await response.get_json())["job_id"] for response in responses}) == 1
        assert len(list(store.scan_iter("mail:*:job:*"))) == 1

    @pytest.mark.parametrize("key", ["a" * 257, "ä"])
    async def test_bad_keys_are_400(self, client: Client, key: str) -> None:
        response = await client.post("/start-job", json=ADA, headers={"Idempotency-Key": key})
        await problem(response, 400, "invalid-idempotency-key")

    async def test_clients_do_not_share_keys(self, guarded: Client, ledger: Ledger) -> None:
        answers = []
        for name in ("shop", "blog"):
            key = (await ledger.keyring.create(name)).text
            headers = {**self.KEY, "Authorization": f"Bearer {key}"}
            answers.append(
                await (await guarded.post("/start-job", json=ADA, headers=headers)).get_json()
            )
        assert answers[0]["job_id"] != answers[1]["job_id"]


class TestKeys:
    async def test_a_key_opens_the_door(self, guarded: Client, ledger: Ledger) -> None:
        new = await ledger.keyring.create("shop")
        headers = {"Authorization": f"Bearer {new.text}"}
        response = await guarded.post("/start-job", json=ADA, headers=headers)
        assert response.status_code == 202
        job_id = (await response.get_json())["job_id"]
        assert (await guarded.get(f"/jobs/{job_id}", headers=headers)).status_code == 200
        await problem(await guarded.get(f"/jobs/{job_id}"), 401, "unauthorized")

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer x",
            "Basic YTpi",
            "Bearer ae_000000000000_" + "0" * 64,
            "Bearer ae_../../_x",
        ],
    )
    async def test_others_do_not(self, guarded: Client, authorization: str | None) -> None:
        headers = {} if authorization is None else {"Authorization": authorization}
        response = await guarded.post("/start-job", json=ADA, headers=headers)
        await problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")

    async def test_the_right_id_with_a_wrong_secret_does_not(
        self, guarded: Client, ledger: Ledger
    ) -> None:
        new = await ledger.keyring.create("shop")
        headers = {"Authorization": f"Bearer ae_{new.key.id}_{'0' * 64}"}
        await problem(await guarded.post("/start-job", json=ADA, headers=headers), 401, "unauthorized")

    async def test_a_revoked_key_does_not(
        self, guarded: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.authentication.CACHE_SECONDS", 0)
        new = await ledger.keyring.create("shop")
        headers = {"Authorization": f"Bearer {new.text}"}
        assert (await guarded.post("/start-job", json=ADA, headers=headers)).status_code == 202
        await ledger.keyring.revoke(new.key.id)
        await problem(await guarded.post("/start-job", json=ADA, headers=headers), 401, "unauthorized")

    async def test_health_and_metrics_need_no_key(self, guarded: Client) -> None:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await guarded.get(path)).status_code == 200


async def test_without_the_ledger_the_answer_is_503_and_soon(
    server: LedgerServer, client: Client
) -> None:
    assert (await client.get("/readyz")).status_code == 200
    await asyncio.to_thread(server.kill)
    started = time.monotonic()
    response = await client.post("/start-job", json=ADA)
    assert time.monotonic() - started < 2
    await problem(response, 503, "ledger-unavailable")
    assert response.headers["Retry-After"] == "1"
    await problem(await client.get(f"/jobs/{new_job_id()}"), 503, "ledger-unavailable")
    ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert (await ready.get_json())["status"] == "not ready"
    assert (await client.get("/livez")).status_code == 200
    metrics = await client.get("/metrics")
    assert "async_email_ledger_up 0.0" in (await metrics.get_data(as_text=True))
    await asyncio.to_thread(server.start)
    assert (await client.post("/start-job", json=ADA)).status_code == 202


async def test_a_ledger_that_forgets_is_said_to(client: Client, store: redis.Redis) -> None:
    assert (await (await client.get("/readyz")).get_json())["checks"]["durability"] == "ok"
    store.config_set("appendfsync", "everysec")
    try:
        checks = (await (await client.get("/readyz")).get_json())["checks"]
    finally:
        store.config_set("appendfsync", "always")
    assert checks["durability"] == "appendfsync is everysec, not always; accepted jobs can be lost"


async def test_a_read_only_ledger_is_not_ready(client: Client, store: redis.Redis) -> None:
    store.config_set("maxmemory", 1)
    assert (await client.get("/readyz")).status_code == 503
    await problem(await client.post("/start-job", json=ADA), 503, "ledger-unavailable")
    store.config_set("maxmemory", 0)
    assert (await client.get("/readyz")).status_code == 200


async def test_requests_and_jobs_are_counted_by_route(client: Client) -> None:
    def sample(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0

    counted = "async_email_http_request_duration_seconds_count"
    before = (
        sample("async_email_jobs_accepted_total"),
        sample(counted, method="POST", route="/start-job"),
        sample(counted, method="GET", route="/jobs/<job_id>"),
        sample(counted, method="other", route="unmatched"),
    )
    job_id = (await (await client.post("/start-job", json=ADA)).get_json())["job_id"]
    await client.get(f"/jobs/{job_id}")
    await client.get("/nothing/here")
    after = (
        sample("async_email_jobs_accepted_total"),
        sample(counted, method="POST", route="/start-job"),
        sample(counted, method="GET", route="/jobs/<job_id>"),
        sample(counted, method="other", route="unmatched"),
    )
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1, 1]
    text = await (await client.get("/metrics")).get_data(as_text=True)
    assert 'async_email_jobs{status="queued"} 1.0' in text
    assert job_id not in text


async def test_a_bug_is_a_500_that_says_where_to_look(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("service.start_job.parse_start_job", broken)
    document = await problem(await client.post("/start-job", json=ADA), 500, "internal-error")
    assert "secret" not in str(document)


async def test_a_path_is_what_it_is(client: Client) -> None:
    await problem(await client.get("/jobs//x"), 404, "not-found")


async def test_invented_methods_are_one_label(client: Client) -> None:
    for number in range(3):
        response = await client.open("/start-job", method=f"MAKEUP{number}", json=ADA)
        assert response.status_code == 405
    text = await (await client.get("/metrics")).get_data(as_text=True)
    assert "MAKEUP" not in text


@pytest.mark.usefixtures("client")
async def test_failures_are_counted_from_nought() -> None:
    for status in ("202", "500", "503"):
        labels = {"method": "POST", "route": "/start-job", "status": status}
        assert REGISTRY.get_sample_value("async_email_http_requests_total", labels) is not None
