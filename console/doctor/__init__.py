"""``async-email doctor``: looks at everything that mail depends on, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from console.doctor.finding import Finding, Verdict
from console.doctor.ledger import look_at_broker, look_at_ledger
from console.doctor.machine import look_at_disk, look_at_files, look_at_ports, look_at_units
from console.doctor.relay import look_at_relay, send_test_mail
from console.doctor.sender import look_at_sender
from mailjob.errors import SettingsError
from mailjob.settings import ConsumerSettings, ServiceSettings, Source, read_settings

__all__ = ["Finding", "Verdict", "examine"]


def examine(source: Source, dotenv: Path, test_mail_to: str | None) -> Iterator[Finding]:
    """One finding after the other, as they come."""
    try:
        consumer = read_settings(ConsumerSettings, source)
        service = read_settings(ServiceSettings, source)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", Verdict.FAILED, problem, "see the table in the README")
        return
    yield Finding("settings", Verdict.OK, "all can be used")
    yield from look_at_files(dotenv)
    yield from look_at_ledger(consumer.redis_url, service.max_pending)
    yield look_at_broker(consumer.broker_url)
    yield look_at_relay(consumer)
    if test_mail_to is not None:
        yield send_test_mail(consumer, test_mail_to)
    yield from look_at_sender(consumer.mail_from.address.rpartition("@")[2])
    yield from look_at_ports()
    yield look_at_disk()
    yield from look_at_units()
