"""Settings: read once from a mapping, typed, frozen, passed down.

A value is looked for in the environment, then as a file of that name in ``$CREDENTIALS_DIRECTORY``
(systemd's LoadCredential), then in ``.env``. An empty value counts as unset.
"""

from mailjob.settings.programs import ConsumerSettings, LedgerSettings, ServiceSettings
from mailjob.settings.reading import Source, read_settings, settings_table
from mailjob.settings.values import (
    AmbiguousPolicy,
    ApiAuth,
    Bind,
    LogFormat,
    LogLevel,
    Sender,
    Tls,
    is_loopback,
)

__all__ = [
    "AmbiguousPolicy",
    "ApiAuth",
    "Bind",
    "ConsumerSettings",
    "LedgerSettings",
    "LogFormat",
    "LogLevel",
    "Sender",
    "ServiceSettings",
    "Source",
    "Tls",
    "is_loopback",
    "read_settings",
    "settings_table",
]
