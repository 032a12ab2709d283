"""What goes out on the SMTP connection, and what comes in from the queue."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.courier.transaction import stuff
from mailjob.job import new_job_id
from mailjob.topology import PoisonError, decode_doorbell, encode_doorbell

CONTENT = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.\r\n", b"\x00", b"\xff"])
).map(b"".join)


@given(CONTENT)
def test_no_content_can_end_itself(content: bytes) -> None:
    """Neither with the final dot nor with one of its near misses (SMTP smuggling)."""
    sent = stuff(content)
    assert sent.endswith(b"\r\n")
    assert not re.search(rb"(^|\r\n|\r|\n)\.(\r\n|\r|\n)", sent)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", sent)


@given(CONTENT)
def test_the_relay_reads_what_was_written(content: bytes) -> None:
    normal = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    normal = normal if normal.endswith(b"\r\n") else normal + b"\r\n"
    unstuffed = b"\r\n".join(line.removeprefix(b".") for line in stuff(content).split(b"\r\n"))
    assert unstuffed == normal


def test_a_doorbell_comes_back_as_it_went() -> None:
    ids = [new_job_id() for _ in range(100)]
    assert decode_doorbell(encode_doorbell(ids)) == ids


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"null",
        b"[]",
        b"{}",
        b'{"ids":[]}',
        b'{"ids":null}',
        b'{"ids":[1]}',
        b'{"ids":["x"]}',
        b'{"ids":["../../etc/passwd"]}',
        b'{"ids":{"__type__":"uuid","__value__":"x"}}',
        b'{"ids":' + b"[" * 100_000,
        json.dumps({"ids": [new_job_id()] * 101}).encode(),
        json.dumps({"ids": [new_job_id()], "more": 1}).encode(),
        b"\xff\xfe",
    ],
)
def test_anything_else_is_poison(body: bytes) -> None:
    with pytest.raises(PoisonError):
        decode_doorbell(body)


@given(st.binary())
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    with pytest.raises(PoisonError):
        decode_doorbell(body)
