"""An errand: a mail on its way to the relay, and whoever waits for the replies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from consumer.courier.transaction import Mail
from consumer.verdict import Reply

Mark = Callable[[], Awaitable[None]]
"""Called when the relay waits for the content. If it raises, nothing of the content is sent."""


class Errand:
    """``replies`` will hold the decisive reply for each recipient, or what the mark raised."""

    __slots__ = ("interrupt", "mail", "mark", "replies")

    def __init__(self, mail: Mail, mark: Mark) -> None:
        self.mail = mail
        self.mark = mark
        self.replies: asyncio.Future[dict[str, Reply]] = asyncio.get_running_loop().create_future()
        self.interrupt: Callable[[], None] | None = None
        """Ends the session, while that is busy with this mail and no other."""

    def abandoned(self) -> bool:
        """Nobody waits any more: nothing more of it may be sent."""
        return self.replies.cancelled()

    def settle(self, replies: dict[str, Reply]) -> None:
        self.interrupt = None
        if not self.replies.done():
            self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        self.interrupt = None
        if not self.replies.done():
            self.replies.set_exception(error)
