"""What is written to the ledger's server, by hiredis or without it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailjob.ledger.packing import Command, pack, pack_in_python
from mailjob.lifecycle import Status

ARGUMENTS = st.one_of(
    st.binary(), st.text(), st.integers(), st.floats(allow_nan=False), st.sampled_from(list(Status))
)


@given(st.lists(ARGUMENTS, min_size=1, max_size=12).map(tuple))
def test_both_ways_write_the_same(command: Command) -> None:
    assert pack(command) == pack_in_python(command)


def test_a_command_is_an_array_of_bulk_strings() -> None:
    assert (
        pack(("SET", "é", b"\r\n", 12))
        == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"
    )
