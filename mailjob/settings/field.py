"""One setting as a field of a frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

REQUIRED: Final = object()


def setting(
    name: str,
    parse: Callable[[str], Any],
    allowed: str,
    default: str | None = None,
    *,
    meaning: str,
    lender: str | None = None,
    unset: Any = REQUIRED,  # noqa: ANN401 - a value of the field's own type
    secret: bool = False,
) -> Any:  # noqa: ANN401 - like dataclasses.field, so that the field's own annotation stands
    """One setting: its name, how it is read, and what the table in the README says about it.

    ``lender`` names another setting whose text stands in where this one has none and can read that.
    ``unset`` is the value where there is no text at all; without it, that is a problem.
    """
    return dataclasses.field(
        repr=not secret,
        metadata={
            "name": name,
            "parse": parse,
            "allowed": allowed,
            "default": default,
            "meaning": meaning,
            "lender": lender,
            "unset": unset,
            "secret": secret,
        },
    )
