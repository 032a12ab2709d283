"""One tree of errors. A message says what happened and what a person can do about it."""

from __future__ import annotations

from collections.abc import Sequence


class AsyncEmailError(Exception):
    """Anything this system raises on purpose."""


class SettingsError(AsyncEmailError):
    """The configuration cannot be used.

    ``problems`` holds one sentence for each wrong value, all of them, not only the first.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class StartError(AsyncEmailError):
    """A program cannot start; the message says what stands in its way."""


class LedgerUnavailableError(AsyncEmailError):
    """The ledger did not answer, or refused to write. What was asked may or may not have happened."""


class LedgerBusyError(LedgerUnavailableError):
    """More calls wait for the ledger than it can answer in time. What was asked did not happen."""


class BacklogFullError(AsyncEmailError):
    """As many jobs are unfinished as may be. What was asked did not happen."""


class IdempotencyConflictError(AsyncEmailError):
    """An idempotency key came again with another body."""


class UnreadableJobError(AsyncEmailError):
    """A stored job is of a wire version this program does not know, or is damaged."""


class RelayError(AsyncEmailError):
    """No session with the relay could be opened; nothing was sent.

    ``code`` is the relay's reply code where it gave one, else 0.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class TemplateUnusableError(AsyncEmailError):
    """A template is missing or cannot be rendered with the job's parameters."""


class ConsoleError(AsyncEmailError):
    """A command of the console cannot go on; the message says why."""
