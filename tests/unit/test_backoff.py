from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumer.backoff import LONGEST_PAUSE, pause, retry_delay

CHANCE = st.floats(0, 1, exclude_max=True)
SCHEDULE = st.lists(st.floats(0, 10**6), min_size=1, max_size=10)


@given(SCHEDULE, st.integers(1, 1000), CHANCE)
def test_a_delay_is_its_step_give_or_take_a_tenth(
    schedule: list[float], attempt: int, chance: float
) -> None:
    step = schedule[min(attempt, len(schedule)) - 1]
    assert 0.9 * step <= retry_delay(schedule, attempt, chance) <= 1.1 * step


def test_the_last_step_is_repeated() -> None:
    assert [retry_delay((1, 2), attempt, 0.5) for attempt in (1, 2, 3, 99)] == [1, 2, 2, 2]


@given(st.integers(1, 10**6), CHANCE)
def test_pauses_double_up_to_a_minute(failures: int, chance: float) -> None:
    assert 0.9 <= pause(failures, chance) <= LONGEST_PAUSE
    assert pause(failures + 1, chance) >= pause(failures, chance)
