from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailjob.ledger.scripts import load_scripts
from mailjob.lifecycle import FINISHED, TRANSITIONS, Status


def test_the_table_speaks_of_every_status() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(following <= set(Status) for following in TRANSITIONS.values())


def test_no_status_follows_itself() -> None:
    assert not [status for status, following in TRANSITIONS.items() if status in following]


@given(st.data())
def test_every_walk_can_reach_an_end(data: st.DataObject) -> None:
    """From wherever a job is, some way leads to a finished status."""
    reached = {data.draw(st.sampled_from(Status))}
    while more := {after for status in reached for after in TRANSITIONS[status]} - reached:
        reached |= more
    assert reached & FINISHED


def test_a_job_is_only_sent_by_who_claimed_it_or_was_uncertain() -> None:
    before_sent = {status for status, following in TRANSITIONS.items() if Status.SENT in following}
    assert before_sent == {Status.SENDING, Status.UNCERTAIN}


def test_the_scripts_carry_the_whole_table() -> None:
    text = load_scripts()["complete"].text
    line = next(line for line in text.splitlines() if line.startswith("local ALLOWED"))
    moves = {tuple(move.split(">")) for move in line.split("'")[1].split()}
    assert moves == {(a.value, b.value) for a, following in TRANSITIONS.items() for b in following}
