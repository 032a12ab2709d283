"""The old system: Flask behind Gunicorn, Celery with smtplib."""

import smtplib

from celery import Celery
from flask import Flask, jsonify, request
from mail import HOST, PORT, REDIS, make

app = Celery("celery_stack", broker=REDIS)
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
web = Flask("celery_stack")


@app.task
def send_email(name, email):
    with smtplib.SMTP(HOST, PORT) as relay:
        relay.send_message(make(name, email))


@web.post("/start-job")
def start_job():
    wanted = request.get_json()
    return jsonify(job_id=send_email.delay(wanted["name"], wanted["email"]).id), 202


def enqueue(mails):
    for _ in range(mails):
        send_email.delay("Ada Lovelace", "ada@example.org")
