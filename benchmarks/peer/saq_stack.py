"""SAQ, with 50 jobs at once."""

import asyncio

import aiosmtplib
from mail import HOST, PORT, REDIS, make
from saq import Queue

queue = Queue.from_url(REDIS)


async def send_email(ctx, *, name, email):
    await aiosmtplib.send(make(name, email), hostname=HOST, port=PORT)


settings = {"queue": queue, "functions": [send_email], "concurrency": 50}


async def fill(mails):
    await queue.connect()
    for _ in range(mails):
        await queue.enqueue("send_email", name="Ada Lovelace", email="ada@example.org")
    await queue.disconnect()


def enqueue(mails):
    asyncio.run(fill(mails))
