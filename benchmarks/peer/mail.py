"""What every peer sends: the old system's mail, from its environment's relay."""

import os
from email.message import EmailMessage

REDIS = os.environ["BENCH_REDIS"]
HOST, PORT = "127.0.0.1", int(os.environ["BENCH_SMTP_PORT"])


def make(name, email):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.org", email, "Welcome!"
    message.set_content(f"Hello {name},\n\nwelcome! It is good to have you here.\n")
    return message
