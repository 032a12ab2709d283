"""``python -m consumer``: one consumer, until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

from consumer.daemon import Daemon
from mailjob.process import run_program
from mailjob.settings import ConsumerSettings


async def consume(settings: ConsumerSettings) -> bool:
    return await Daemon(settings).run()


if __name__ == "__main__":
    sys.exit(run_program("consumer", ConsumerSettings, consume))
