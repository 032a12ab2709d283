"""Carries mail to the relay: a bounded pool of warm SMTP sessions.

aiosmtplib connects, speaks TLS and AUTH, and reads replies; the transaction itself is driven here, step
by step, so that the ledger's mark stands exactly before the content and every reply is kept.
"""

from consumer.courier.pool import Courier
from consumer.courier.session import Mail, Relay

__all__ = ["Courier", "Mail", "Relay"]
