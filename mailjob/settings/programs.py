"""Every setting, by the program that needs it: a row of the README's table each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mailjob.failpoints import Failpoint
from mailjob.settings import values
from mailjob.settings.field import setting
from mailjob.settings.values import (
    AmbiguousPolicy,
    ApiAuth,
    Bind,
    LogFormat,
    LogLevel,
    Sender,
    Tls,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    """What every program needs."""

    redis_url: str = setting(
        "REDIS_URL",
        values.url("redis", "rediss", "unix"),
        "`redis://`, `rediss://` or `unix:///path?db=0`",
        "redis://127.0.0.1:6379/0",
        meaning="the ledger: Redis 6.2 or later, or Valkey",
        secret=True,
    )
    broker_url: str = setting(
        "BROKER_URL",
        values.url("redis", "rediss", "unix", "amqp", "amqps"),
        "as `REDIS_URL`, or `amqp://`, `amqps://`",
        "redis://127.0.0.1:6379/0",
        lender="REDIS_URL",
        meaning="Kombu's broker for the doorbells",
        secret=True,
    )
    log_format: LogFormat | None = setting(
        "LOG_FORMAT",
        LogFormat,
        "`json`, `console`",
        meaning="form of the log on stderr; `console` on a terminal, else `json`, where unset",
        unset=None,
    )
    log_level: LogLevel = setting(
        "LOG_LEVEL",
        LogLevel,
        "`debug`, `info`, `warning`, `error`",
        "info",
        meaning="the least important lines that are logged",
    )

    job_retention: float = setting(
        "JOB_RETENTION",
        values.seconds(1),
        "seconds, 1 or more",
        "604800",
        meaning="a finished job is forgotten after this time",
    )
    failpoint: tuple[Failpoint, int] | None = setting(
        "FAILPOINT",
        values.failpoint,
        "`name` or `name:n`, names in `mailjob/failpoints.py`",
        meaning="for tests: die when this point is reached for the n-th time",
        unset=None,
    )

    def problems(self) -> list[str]:
        """What is wrong with values that are each allowed, taken together."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReconcileSettings(LedgerSettings):
    reconcile_seconds: float = setting(
        "RECONCILE_SECONDS",
        values.seconds(0.05),
        "seconds, 0.05 or more",
        "5",
        meaning="how often due jobs are looked for; a doorbell has twice this time to be heard",
    )

    @property
    def grace_seconds(self) -> float:
        """How long a queued job waits for its doorbell before the reconciler takes it."""
        return 2 * self.reconcile_seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings(_ReconcileSettings):
    api_bind: Bind = setting(
        "API_BIND",
        values.bind,
        "`host:port` or `unix:/path`",
        "127.0.0.1:8000",
        meaning="where the API listens",
    )
    api_auth: ApiAuth = setting(
        "API_AUTH",
        ApiAuth,
        "`keys`, `off` (loopback and unix sockets only)",
        "keys",
        meaning="whether requests need `Authorization: Bearer <key>`",
    )

    max_pending: int = setting(
        "MAX_PENDING",
        values.whole(1, 10**9),
        "1 to 1000000000",
        "1000000",
        meaning="most unfinished jobs; beyond that `POST /start-job` is answered 503",
    )

    def problems(self) -> list[str]:
        if self.api_auth is ApiAuth.OFF and not self.api_bind.local:
            bind = f"API_BIND={self.api_bind}"
            return [f"API_AUTH=off is refused with {bind}: only loopback and unix sockets are allowed"]
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsumerSettings(_ReconcileSettings):
    smtp_host: str = setting(
        "SMTP_HOST", values.text, "a host name or address", meaning="the relay that takes the mail"
    )
    smtp_port: int = setting(
        "SMTP_PORT", values.whole(1, 65535), "1 to 65535", "587", meaning="the relay's port"
    )
    smtp_username: str = setting(
        "SMTP_USERNAME", values.text, "text", meaning="for AUTH; no AUTH where unset", unset=""
    )
    smtp_password: str = setting(
        "SMTP_PASSWORD", values.text, "text", meaning="for AUTH", unset="", secret=True
    )
    smtp_tls: Tls = setting(
        "SMTP_TLS",
        Tls,
        "`auto`, `starttls`, `tls`, `none`",
        "auto",
        meaning="`auto`: port 465 `tls`; 587 `starttls` required; others STARTTLS if offered",
    )
    smtp_connections: int = setting(
        "SMTP_CONNECTIONS",
        values.whole(1, 10_000),
        "1 to 10000",
        "20",
        meaning="most open connections of one consumer to the relay",
    )
    mail_from: Sender = setting(
        "MAIL_FROM",
        values.sender,
        "`address` or `Name <address>`",
        lender="SMTP_USERNAME",
        meaning="the sender; required where `SMTP_USERNAME` is no address",
    )
    template_dir: Path | None = setting(
        "TEMPLATE_DIR",
        values.directory,
        "an existing directory",
        meaning="templates that replace the built-in ones of the same name",
        unset=None,
    )
    consumer_concurrency: int | None = setting(
        "CONSUMER_CONCURRENCY",
        values.whole(1, 10_000),
        "1 to 10000",
        meaning="mails one consumer has in flight; unset: 100, or three for each of `SMTP_CONNECTIONS`",
        unset=None,
    )
    consumer_metrics_bind: Bind = setting(
        "CONSUMER_METRICS_BIND",
        values.bind,
        "`host:port`",
        "127.0.0.1:9102",
        meaning="where the consumer shows its metrics",
    )
    retry_schedule: tuple[float, ...] = setting(
        "RETRY_SCHEDULE",
        values.schedule,
        "seconds, comma-separated",
        "60,300,900,1800,3600,7200",
        meaning="waits between attempts, the last one repeated, each varied by up to 10 %",
    )
    job_lifetime: float = setting(
        "JOB_LIFETIME",
        values.seconds(1),
        "seconds, 1 or more",
        "172800",
        meaning="a job that could not be sent for this long fails",
    )
    lease_seconds: float = setting(
        "LEASE_SECONDS",
        values.seconds(0.5),
        "seconds, 0.5 or more",
        "15",
        meaning="a consumer that shows no sign of life for this long loses its jobs to others",
    )
    drain_seconds: float = setting(
        "DRAIN_SECONDS",
        values.seconds(0),
        "seconds, 0 or more",
        "30",
        meaning="how long a stopping consumer waits for replies to mail it has handed over",
    )
    ambiguous_policy: AmbiguousPolicy = setting(
        "AMBIGUOUS_POLICY",
        AmbiguousPolicy,
        "`resend`, `hold`",
        "resend",
        meaning="what to do when the connection is lost after the final dot",
    )

    @property
    def most_in_flight(self) -> int:
        """Enough to have one mail ready behind each that is being sent, and one being completed."""
        return self.consumer_concurrency or max(100, 3 * self.smtp_connections)

    def problems(self) -> list[str]:
        if self.consumer_metrics_bind.path:
            return ["CONSUMER_METRICS_BIND: only host:port is allowed, not a unix socket"]
        return []
