"""``python -m consumer``: one consumer, until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

from consumer.daemon import Daemon
from mailjob.process import run_program
from mailjob.settings import ConsumerSettings
from mailjob.supervision import Supervisor


async def consume(settings: ConsumerSettings, supervisor: Supervisor) -> bool:
    return await Daemon(settings).run(supervisor)


if __name__ == "__main__":
    sys.exit(run_program("consumer", ConsumerSettings, consume))
