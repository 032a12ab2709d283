from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from mailjob.logs import Lines, mask, set_up_logs
from mailjob.settings import LedgerSettings, Source, read_settings


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the log pipeline writes."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    set_up_logs(read_settings(LedgerSettings, Source({"LOG_FORMAT": "json"}, Path("/nonexistent"))))
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stderr: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ada@example.org", "a***@example.org"),
        ("550 <ada@example.org>: unknown", "550 <a***@example.org>: unknown"),
        ("a@b.org, c@d.org", "a***@b.org, c***@d.org"),
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:hunter2@host/0", "redis://:***@host/0"),
        ("nothing here", "nothing here"),
    ],
)
def test_addresses_and_passwords_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_own_and_foreign_records_have_the_same_form(stderr: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(request_id="r1")
    structlog.get_logger().info("own", job_id="j1", reply="550 <ada@example.org> unknown")
    logging.getLogger("kombu").warning("lost %s", "redis://:hunter2@host")
    structlog.contextvars.clear_contextvars()
    own, foreign = lines(stderr)
    assert own["event"] == "own"
    assert own["job_id"] == "j1"
    assert own["reply"] == "550 <a***@example.org> unknown"
    assert foreign["event"] == "lost redis://:***@host"
    assert foreign["level"] == "warning"
    for line in (own, foreign):
        assert line["request_id"] == "r1"
        assert str(line["timestamp"]).endswith("Z")


def test_tracebacks_and_odd_values_stay_on_one_masked_line(stderr: io.StringIO) -> None:
    log = structlog.get_logger()
    try:
        raise ValueError("for ada@example.org")
    except ValueError:
        log.exception("broken", path=Path("/x"), addresses=["ada@example.org"])
    (line,) = lines(stderr)
    assert "ValueError: for a***@example.org" in str(line["exception"])
    assert "ada@" not in json.dumps(line)


class Stream(io.StringIO):
    """Remembers what each call wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)


def test_what_one_turn_logs_is_written_with_one_call() -> None:
    stream = Stream()
    lines = Lines(stream)

    async def log() -> None:
        lines.info("a")
        lines.info("b")
        assert stream.writes == []
        await asyncio.sleep(0)
        lines.info("c")

    asyncio.run(log())
    assert stream.writes == ["a\nb\n", "c\n"]


def test_a_warning_is_written_at_once_behind_what_waits() -> None:
    stream = Stream()
    lines = Lines(stream)

    async def log() -> None:
        lines.info("a")
        lines.warning("b")
        assert stream.writes == ["a\nb\n"]

    asyncio.run(log())
    assert stream.writes == ["a\nb\n"]


def test_without_an_event_loop_every_line_is_written_at_once() -> None:
    stream = Stream()
    Lines(stream).info("a")
    assert stream.writes == ["a\n"]
