"""taskiq on a Redis list, as its documentation begins."""

import asyncio

import aiosmtplib
from mail import HOST, PORT, REDIS, make
from taskiq_redis import ListQueueBroker

# Reads of redis-py 8 time out by default, and a worker that waits for long enough ends.
broker = ListQueueBroker(REDIS, socket_timeout=None)


@broker.task
async def send_email(name, email):
    await aiosmtplib.send(make(name, email), hostname=HOST, port=PORT)


async def fill(mails):
    await broker.startup()
    for _ in range(mails):
        await send_email.kiq("Ada Lovelace", "ada@example.org")
    await broker.shutdown()


def enqueue(mails):
    asyncio.run(fill(mails))
