"""The ledger: the only truth about every job, and the only room that speaks to Redis.

Each step of a job's life is one server-side script (``scripts/*.lua``); each has one method of
``Ledger``. Calls made at the same moment travel as one pipeline (``group_commit``).
"""

from mailjob.ledger.keyring import ApiKey, Keyring, NewKey, digest
from mailjob.ledger.ledger import Ledger

__all__ = ["ApiKey", "Keyring", "Ledger", "NewKey", "digest"]
