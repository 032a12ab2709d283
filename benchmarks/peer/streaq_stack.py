"""streaQ, with 50 jobs at once."""

import asyncio

import aiosmtplib
from mail import HOST, PORT, REDIS, make
from streaq import Worker

worker = Worker(redis_url=REDIS, concurrency=50)


@worker.task
async def send_email(name, email):
    await aiosmtplib.send(make(name, email), hostname=HOST, port=PORT)


async def fill(mails):
    async with worker:
        for _ in range(mails):
            await send_email.enqueue("Ada Lovelace", "ada@example.org")


def enqueue(mails):
    asyncio.run(fill(mails))
