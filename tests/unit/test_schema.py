from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.problems import Problem
from service.schema import check_address, parse_address, parse_idempotency_key, parse_start_job

ATOM = st.text("abcXYZ019.!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=66)
DOMAIN = st.text("abcXYZ019.-", min_size=1, max_size=70)


def start_job(**values: Any) -> bytes:
    return json.dumps({"name": "Ada", "email": "ada@example.org", **values}).encode()


def pointers(body: bytes) -> list[str]:
    with pytest.raises(Problem) as caught:
        parse_start_job(body, "id")
    assert caught.value.status is HTTPStatus.UNPROCESSABLE_ENTITY
    return [fault.pointer for fault in caught.value.faults]


def test_a_good_request_becomes_a_job() -> None:
    job = parse_start_job(start_job(name="Žofie 🙂"), "id")
    assert job.body.template == "welcome"
    assert job.body.parameters == {"name": "Žofie 🙂"}
    assert [recipient.address for recipient in job.recipients] == ["ada@example.org"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"NaN", b'{"name":"\xff"}', b'{"name":"\\ud800"}', b"[" * 60_000, b"1e999"],
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse_start_job(body, "id")
    assert caught.value.status is HTTPStatus.BAD_REQUEST
    assert caught.value.kind == "invalid-json"


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1"])
def test_json_that_is_no_object_is_422(body: bytes) -> None:
    assert pointers(body) == [""]


def test_all_faults_are_listed_with_their_pointers() -> None:
    body = json.dumps({"nome": 1, "a/b~c": 2, "email": 3}).encode()
    assert pointers(body) == ["/nome", "/a~1b~0c", "/name", "/email"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a" * 201,
        "a\nb",
        "a\r\nBcc: x@y.org",
        "a\x00",
        "a\x7f",
        "a\u2028b",
        "a\x85b",
        "a\u202eb",
        None,
        1,
        [],
    ],
)
def test_bad_names(name: object) -> None:
    assert pointers(start_job(name=name)) == ["/name"]


def test_encoded_words_are_refused() -> None:
    assert pointers(start_job(name="=?utf-8?q?a=0d=0aBcc:_x@y.org?=")) == ["/name"]


@pytest.mark.parametrize("name", ["a" * 200, "O'Brien", "=?", "{{ 7*7 }}", "<b>", "Ω", "a\u200db"])
def test_good_names(name: str) -> None:
    assert parse_start_job(start_job(name=name), "id").body.parameters == {"name": name}


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ada",
        "@example.org",
        "ada@",
        "ada@localhost",
        "ada@example..org",
        "ada@-example.org",
        "ada@example.org ",
        "ada@example.org\n",
        "ada@example.org\r\nRCPT TO:<eve@example.org>",
        "<ada@example.org>",
        "Ada <ada@example.org>",
        "ada@example.org,eve@example.org",
        "ada@example.org;eve@example.org",
        '"ada lovelace"@example.org',
        '"ada\\" eve"@example.org',
        "ada(comment)@example.org",
        "ada@[127.0.0.1]",
        "ada@example.org>",
        "a@b@example.org",
        ".ada@example.org",
        "a" * 65 + "@example.org",
        "a@" + "b" * 64 + ".org",
        "a@" + "b." * 130 + "org",
        "grüße@example.org",
        None,
    ],
)
def test_bad_addresses(email: object) -> None:
    assert pointers(start_job(email=email)) == ["/email"]


@pytest.mark.parametrize(
    ("email", "on_the_wire"),
    [
        ("ada@example.org", "ada@example.org"),
        ("Ada.Lovelace+x@EXAMPLE.Org", "Ada.Lovelace+x@example.org"),
        ("ada@münchen.example", "ada@xn--mnchen-3ya.example"),
        ("ada@mail.local", "ada@mail.local"),
        ("o'brien@example.org", "o'brien@example.org"),
        ("a@b-c.example.co.uk", "a@b-c.example.co.uk"),
    ],
)
def test_good_addresses(email: str, on_the_wire: str) -> None:
    job = parse_start_job(start_job(email=email), "id")
    assert job.recipients[0].address == on_the_wire


def test_a_non_ascii_local_part_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="SMTPUTF8"):
        parse_address("grüße@example.org")


@given(st.tuples(ATOM, DOMAIN).map("@".join))
def test_the_short_way_agrees_with_the_whole_check(text: str) -> None:
    try:
        expected = check_address(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            parse_address(text)
    else:
        assert parse_address(text) == expected


@given(st.text())
def test_an_address_is_ascii_without_anything_smtp_could_misread(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert address.isascii()
    assert address.isprintable()
    assert not set(address) & set(' <>()[]:;,\\"')
    assert len(address) <= 254


@given(st.binary())
def test_any_bytes_give_a_job_or_a_problem(body: bytes) -> None:
    try:
        parse_start_job(body, "id")
    except Problem as problem:
        assert problem.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
        assert json.loads(problem.to_json("r"))["type"].startswith("urn:async-email:problem:")


@pytest.mark.parametrize("key", ["", "a" * 257, "ä", "a\x00"])
def test_bad_idempotency_keys(key: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_idempotency_key(key)
    assert caught.value.status is HTTPStatus.BAD_REQUEST
