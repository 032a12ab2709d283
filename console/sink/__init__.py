"""An SMTP server that takes everything, and fails wherever it is told to.

For the demo, the tests and the measurements. It passes nothing on.

Faults are chosen in two ways. ``Script.answers`` has replies by step (``BANNER EHLO STARTTLS AUTH MAIL
RCPT DATA CONTENT RSET``), taken in order, the last one repeated; ``CLOSE`` closes the connection, and
``HANG`` says nothing before ``let_go``. And a recipient can ask for a fault with the first part of its
address, up to the first ``+``; ``xN`` means the first N times only::

    rcpt-450+ada@example.org          450 to RCPT        data-451+...     451 to DATA
    rcpt-450-x2+ada@example.org       twice, then taken  content-554+...  554 to the dot
    drop-rcpt+...  drop-data+...      closes instead of answering RCPT or DATA
    drop-content+...                  closes as soon as content arrives
    drop-dot+...                      takes the mail, then closes without a reply
    slow-3+...                        takes the mail, answers after 3 seconds
"""

from console.sink.script import CLOSE, HANG, Script, Taken
from console.sink.server import Sink

__all__ = ["CLOSE", "HANG", "Script", "Sink", "Taken"]
