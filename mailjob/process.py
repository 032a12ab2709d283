"""How each program starts and ends: settings, logs, event loop, exit status."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from mailjob.errors import AsyncEmailError, SettingsError
from mailjob.failpoints import arm
from mailjob.logs import set_up_logs
from mailjob.settings import LedgerSettings, Source, read_settings
from mailjob.supervision import Supervisor

S = TypeVar("S", bound=LedgerSettings)

EX_UNAVAILABLE: Final = 69  # sysexits.h
EX_SOFTWARE: Final = 70
EX_CONFIG: Final = 78

GC_THRESHOLDS: Final = (20_000, 20, 20)


def run_program(
    name: str, kind: type[S], work: Callable[[S, Supervisor], Coroutine[Any, Any, bool]]
) -> int:
    """Read the settings of ``kind``, run ``work`` on an event loop, and give the exit status.

    ``work`` gives False when a part of it died. What cannot start says so on stderr, in words.
    """
    try:
        settings = read_settings(kind, Source(os.environ, Path(".env")))
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{name}: {problem}\n")
        return EX_CONFIG
    set_up_logs(settings)
    if settings.failpoint is not None:
        arm(*settings.failpoint)
    # What is loaded by now stays; collecting it again and again cost each request a tenth of its time.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return 0 if runner.run(work(settings, Supervisor(os.environ))) else EX_SOFTWARE
    except AsyncEmailError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return EX_UNAVAILABLE


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where that is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop
