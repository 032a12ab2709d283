"""Carries mail to the relay: a bounded pool of warm SMTP sessions.

aiosmtplib connects and speaks TLS and AUTH (``opening``); then ``wire`` takes the connection over, and
``session`` drives the transactions, so that they can be pipelined, the ledger's mark stands exactly
before the content, and every reply is kept.
"""

from consumer.courier.pool import Courier
from consumer.courier.relay import Relay
from consumer.courier.transaction import Mail

__all__ = ["Courier", "Mail", "Relay"]
