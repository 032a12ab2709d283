"""arq, with more jobs at once than its default of 10."""

import asyncio

import aiosmtplib
from arq import create_pool
from arq.connections import RedisSettings
from mail import HOST, PORT, REDIS, make


async def send_email(ctx, name, email):
    await aiosmtplib.send(make(name, email), hostname=HOST, port=PORT)


class WorkerSettings:
    functions = [send_email]
    redis_settings = RedisSettings.from_dsn(REDIS)
    max_jobs = 50
    keep_result = 0


async def fill(mails):
    pool = await create_pool(WorkerSettings.redis_settings)
    for _ in range(mails):
        await pool.enqueue_job("send_email", "Ada Lovelace", "ada@example.org")


def enqueue(mails):
    asyncio.run(fill(mails))
