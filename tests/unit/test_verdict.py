from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.verdict import Attempt, Reply, Step, Verdict, blames_relay, conclude, judge
from mailjob.job import Recipient
from mailjob.lifecycle import FINISHED, TRANSITIONS, UNSETTLED, RecipientStatus, Status

STEP = st.sampled_from(Step)
CODE = st.integers(0, 999)
REPLY = st.builds(Reply, STEP, CODE, st.text(max_size=600))


def attempt(*, age_ms: int = 0, delay_ms: int = 60_000, hold: bool = False) -> Attempt:
    return Attempt(
        number=1, age_ms=age_ms, lifetime_ms=172_800_000, delay_ms=delay_ms, hold_ambiguous=hold
    )


@pytest.mark.parametrize(
    ("step", "code", "verdict"),
    [
        (Step.CONTENT, 250, Verdict.SENT),
        (Step.CONTENT, 251, Verdict.SENT),
        (Step.CONTENT, 0, Verdict.UNCERTAIN),
        (Step.CONTENT, 451, Verdict.RETRY),
        (Step.CONTENT, 554, Verdict.REFUSED),
        (Step.CONTENT, 421, Verdict.RETRY),
        (Step.MAIL, 250, Verdict.RETRY),  # not decisive: nothing was sent
        (Step.MAIL, 451, Verdict.RETRY),
        (Step.MAIL, 550, Verdict.REFUSED),
        (Step.MAIL, 530, Verdict.RETRY),  # authentication required: our account
        (Step.MAIL, 0, Verdict.RETRY),
        (Step.RCPT, 450, Verdict.RETRY),
        (Step.RCPT, 550, Verdict.REFUSED),
        (Step.RCPT, 552, Verdict.RETRY),  # RFC 5321, 4.5.3.1.10
        (Step.CONTENT, 552, Verdict.REFUSED),
        (Step.DATA, 451, Verdict.RETRY),
        (Step.DATA, 554, Verdict.REFUSED),
        (Step.DATA, 0, Verdict.RETRY),
        (Step.CONNECT, 0, Verdict.RETRY),
        (Step.CONNECT, 535, Verdict.RETRY),
        (Step.CONNECT, 554, Verdict.RETRY),  # no session at all speaks of the relay
        (Step.COMPOSE, 0, Verdict.RETRY),
        (Step.RCPT, 999, Verdict.RETRY),
    ],
)
def test_the_table(step: Step, code: int, verdict: Verdict) -> None:
    assert judge(Reply(step, code, "")) is verdict


@given(REPLY)
def test_only_a_5yz_reply_is_final_and_only_a_2yz_to_the_content_is_sent(reply: Reply) -> None:
    verdict = judge(reply)
    if verdict is Verdict.REFUSED:
        assert 500 <= reply.code <= 599
    if verdict is Verdict.SENT:
        assert reply.step is Step.CONTENT
        assert 200 <= reply.code <= 299
    assert (verdict is Verdict.UNCERTAIN) == (reply.step is Step.CONTENT and reply.code == 0)


@pytest.mark.parametrize(
    ("reply", "blamed"),
    [
        (Reply(Step.CONNECT, 0, ""), True),
        (Reply(Step.MAIL, 421, ""), True),
        (Reply(Step.MAIL, 535, ""), True),
        (Reply(Step.RCPT, 550, ""), False),
        (Reply(Step.CONTENT, 451, ""), False),
    ],
)
def test_who_is_blamed(reply: Reply, blamed: bool) -> None:
    assert blames_relay(reply) is blamed


RECIPIENTS = st.lists(st.tuples(st.sampled_from(RecipientStatus), REPLY), min_size=1, max_size=5).filter(
    lambda drawn: any(status in UNSETTLED for status, _ in drawn)
)


@given(RECIPIENTS, st.integers(0, 10**9), st.integers(0, 10**7), st.booleans())
def test_what_is_settled_stays_and_the_job_follows(
    drawn: list[tuple[RecipientStatus, Reply]], age_ms: int, delay_ms: int, hold: bool
) -> None:
    before = [Recipient(f"r{number}@example.org", status) for number, (status, _) in enumerate(drawn)]
    replies = {
        recipient.address: reply
        for recipient, (_, reply) in zip(before, drawn, strict=True)
        if recipient.status in UNSETTLED
    }
    end = conclude(before, replies, attempt(age_ms=age_ms, delay_ms=delay_ms, hold=hold))

    assert end.recipients is not None
    assert end.status in TRANSITIONS[Status.SENDING]
    for old, new in zip(before, end.recipients, strict=True):
        assert new.address == old.address
        if old.status not in UNSETTLED:
            assert new == old
        assert new.status is not RecipientStatus.PENDING
        assert len(new.reply or "") <= 400
    unsettled = [recipient for recipient in end.recipients if recipient.status in UNSETTLED]
    assert (end.status is Status.DEFERRED) == bool(unsettled)
    assert (end.delay_ms is None) == (end.status in FINISHED)
    assert (end.status is Status.SENT) == all(
        recipient.status is RecipientStatus.SENT for recipient in end.recipients
    )
    if end.status is Status.DEFERRED:
        assert age_ms + delay_ms <= 172_800_000


def one(reply: Reply, how: Attempt) -> tuple[Status, RecipientStatus, object]:
    end = conclude([Recipient("ada@example.org")], {"ada@example.org": reply}, how)
    assert end.recipients is not None
    return end.status, end.recipients[0].status, end.event["event"]


LOST = Reply(Step.CONTENT, 0, "connection lost")


def test_an_ambiguous_attempt_is_repeated_or_held() -> None:
    assert one(LOST, attempt()) == (Status.DEFERRED, RecipientStatus.DEFERRED, "ambiguous")
    held = (Status.UNCERTAIN, RecipientStatus.UNCERTAIN, "ambiguous")
    assert one(LOST, attempt(hold=True)) == held
    assert one(LOST, attempt(age_ms=172_800_000)) == held


def test_a_lifetime_that_ran_out_fails_with_the_last_reply() -> None:
    end = conclude(
        [Recipient("ada@example.org")],
        {"ada@example.org": Reply(Step.RCPT, 450, "greylisted\nfor now")},
        attempt(age_ms=172_799_000),
    )
    assert end.status is Status.FAILED
    assert end.recipients == (
        Recipient("ada@example.org", RecipientStatus.FAILED, "450 greylisted for now"),
    )
    assert end.event["reason"] == "the job's lifetime ran out"


def test_one_recipient_sent_and_one_deferred_then_refused() -> None:
    both = [Recipient("a@example.org"), Recipient("b@example.org")]
    replies = {
        "a@example.org": Reply(Step.CONTENT, 250, "taken"),
        "b@example.org": Reply(Step.RCPT, 450, "later"),
    }
    first = conclude(both, replies, attempt())
    assert first.status is Status.DEFERRED
    assert first.recipients is not None
    second = conclude(first.recipients, {"b@example.org": Reply(Step.RCPT, 550, "never")}, attempt())
    assert second.status is Status.FAILED
    assert second.recipients is not None
    assert [recipient.status for recipient in second.recipients] == ["sent", "failed"]
