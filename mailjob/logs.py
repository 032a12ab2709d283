"""One log pipeline for our own records and foreign ones: one JSON object a line, on stderr.

Addresses are masked and passwords in URLs removed in every text that passes, wherever it comes from.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import sys
import threading
from collections import deque
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mailjob.settings import LedgerSettings, LogFormat

_ADDRESS = re.compile(r"([^\s@<>\"'(),:;]{1,64})@([A-Za-z0-9\u0080-\uffff.-]+)")
_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s/]+@")


def mask(text: str) -> str:
    """``ada@example.org`` becomes ``a***@example.org``; a password in a URL becomes ``***``."""
    text = _PASSWORD.sub(r"\1***@", text)
    return _ADDRESS.sub(_mask_address, text)


def _mask_address(match: re.Match[str]) -> str:
    local, domain = match.groups()
    return match[0] if local == "***" else f"{local[0]}***@{domain}"


def _mask_all(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            if "@" in value:
                event[key] = mask(value)
        elif not isinstance(value, int | float | None):
            text = str(value)
            event[key] = mask(text) if "@" in text else value
    return event


def _to_json(event: EventDict, **_: Any) -> str:  # noqa: ANN401 - structlog's serializer protocol
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return msgspec.json.encode({**first, **event}, enc_hook=str).decode()


class Lines:
    """Writes what is logged in one turn of the event loop with one call; a warning or worse at once.

    Ten microseconds a line are spared, and what a sudden end can lose is what one turn had to say. May
    be called by every thread.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pending: deque[str] = deque()
        self._scheduled = False
        self._writing = threading.Lock()

    def info(self, line: str) -> None:
        self._pending.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._turn)

    debug = info

    def warning(self, line: str) -> None:
        self._pending.append(line)
        self.flush()

    error = critical = warning

    def flush(self) -> None:
        """Write all that waits, in its order."""
        with self._writing:
            lines = [self._pending.popleft() for _ in range(len(self._pending))]
            if lines:
                self._stream.write("\n".join([*lines, ""]))
                self._stream.flush()

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()


def set_up_logs(settings: LedgerSettings) -> None:
    """Send every record of this process through one pipeline."""
    on_terminal = sys.stderr.isatty()
    form = settings.log_format or (LogFormat.CONSOLE if on_terminal else LogFormat.JSON)
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    after: list[Processor] = (
        [
            structlog.processors.format_exc_info,
            _mask_all,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
        if form is LogFormat.JSON
        else [_mask_all, structlog.dev.ConsoleRenderer(colors=on_terminal)]
    )
    lines = Lines(sys.stderr)
    atexit.register(lines.flush)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*before, *after],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.INFO))
    # Each of these reports in its own words what ours report with more context.
    for chatty in ("hypercorn.access", "quart.serving", "mail.log", "aiosmtplib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
