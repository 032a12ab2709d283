"""How long to wait before trying again. Pure: chance comes in as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

JITTER: Final = 0.1
LONGEST_PAUSE: Final = 60.0


def retry_delay(schedule: Sequence[float], attempt: int, chance: float) -> float:
    """Seconds after failed attempt number ``attempt`` (from 1). ``chance`` is in [0, 1)."""
    step = schedule[min(attempt, len(schedule)) - 1]
    return step * (1 + JITTER * (2 * chance - 1))


def pause(failures: int, chance: float, first: float = 1.0) -> float:
    """Seconds after ``failures`` failures in a row: doubling, at most a minute, never in step."""
    return min(LONGEST_PAUSE, first * 2.0 ** min(failures - 1, 16)) * (1 - JITTER * chance)
