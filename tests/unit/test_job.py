from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailjob.errors import UnreadableJobError
from mailjob.job import (
    Body,
    Recipient,
    decode_body,
    decode_recipients,
    encode_body,
    encode_recipients,
    is_job_id,
    new_job_id,
)
from mailjob.lifecycle import RecipientStatus

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.builds(Body, TEXT, st.dictionaries(TEXT, TEXT)))
def test_a_body_comes_back_as_it_went(body: Body) -> None:
    assert decode_body(encode_body(body)) == body


@given(st.lists(st.builds(Recipient, TEXT, st.sampled_from(RecipientStatus), st.none() | TEXT)))
def test_recipients_come_back_as_they_went(recipients: list[Recipient]) -> None:
    assert decode_recipients(encode_recipients(recipients)) == tuple(recipients)


def test_the_wire_form_of_version_1_never_changes() -> None:
    assert (
        encode_body(Body("welcome", {"name": "Ada"}))
        == b'{"v":1,"template":"welcome","parameters":{"name":"Ada"}}'
    )
    assert encode_recipients([Recipient("ada@example.org")]) == b'[{"address":"ada@example.org"}]'


@pytest.mark.parametrize(
    "wire",
    [b"", b"{", b"[]", b'{"v":2,"template":"welcome","parameters":{}}', b'{"v":1}', b"\xff", b"null"],
)
def test_what_cannot_be_read_says_so(wire: bytes) -> None:
    with pytest.raises(UnreadableJobError):
        decode_body(wire)


def test_ids_are_version_7_and_grow_with_time() -> None:
    ids = [new_job_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {uuid.UUID(job_id).version for job_id in ids} == {7}
    assert {uuid.UUID(job_id).variant for job_id in ids} == {uuid.RFC_4122}
    stamps = [uuid.UUID(job_id).int >> 80 for job_id in ids]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    "text",
    ["", "x", "../x", "{0}", new_job_id().upper(), new_job_id().replace("-", ""), new_job_id() + " "],
)
def test_only_one_spelling_of_an_id_is_taken(text: str) -> None:
    assert not is_job_id(text)


def test_new_ids_are_ids() -> None:
    assert is_job_id(new_job_id())
