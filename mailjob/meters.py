"""The catalogue of metrics: each once, with its help. No address, id or raw path in a label."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from mailjob.lifecycle import FINISHED
from mailjob.records import Census

disable_created_metrics()

REGISTRY: Final = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3600.0)

# The service

HTTP_SECONDS: Final = Histogram(
    "async_email_http_request_duration_seconds",
    "Time from the request's headers to the last byte of the answer.",
    ("method", "route"),
    buckets=_SECONDS,
    registry=REGISTRY,
)
HTTP_REQUESTS: Final = Counter(
    "async_email_http_requests_total",
    "Requests answered.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
ACCEPTED: Final = Counter(
    "async_email_jobs_accepted_total", "Jobs written to the ledger.", registry=REGISTRY
)
REPLAYED: Final = Counter(
    "async_email_jobs_replayed_total",
    "Requests answered again because of their idempotency key.",
    registry=REGISTRY,
)
BACKLOG_FULL: Final = Counter(
    "async_email_backlog_full_total",
    "Requests refused because MAX_PENDING jobs were unfinished.",
    registry=REGISTRY,
)
DOORBELLS: Final = Counter(
    "async_email_doorbells_total",
    "Doorbells by what became of them; lost ones delay their jobs by seconds, no more.",
    ("result",),
    registry=REGISTRY,
)
BROKER_UP: Final = Gauge(
    "async_email_broker_up",
    "1 while this program's connection to the broker works, else 0.",
    registry=REGISTRY,
)

# The consumer

CLAIMS: Final = Counter(
    "async_email_claims_total",
    "Attempts to claim a job by what came of them; only claimed ones are sent.",
    ("result",),
    registry=REGISTRY,
)
FINISHED_JOBS: Final = Counter(
    "async_email_jobs_finished_total", "Jobs that ended, by outcome.", ("outcome",), registry=REGISTRY
)
DEFERRED: Final = Counter(
    "async_email_jobs_deferred_total", "Attempts that will be repeated.", registry=REGISTRY
)
AMBIGUOUS: Final = Counter(
    "async_email_ambiguous_attempts_total",
    "Attempts lost between the final dot and the relay's reply (RFC 1047).",
    registry=REGISTRY,
)
CLAIMS_LOST: Final = Counter(
    "async_email_claims_lost_total",
    "Claims that were lost to another consumer, by the step that noticed.",
    ("step",),
    registry=REGISTRY,
)
LEASES_EXPIRED: Final = Counter(
    "async_email_leases_expired_total",
    "Jobs taken back from a consumer that showed no sign of life.",
    registry=REGISTRY,
)
SWEPT: Final = Counter(
    "async_email_jobs_swept_total",
    "Due jobs that the reconciler took up without a doorbell.",
    registry=REGISTRY,
)
LEDGER_ORPHANS: Final = Counter(
    "async_email_ledger_orphans_total",
    "Due entries whose job is gone from the ledger: data was lost or evicted.",
    registry=REGISTRY,
)
POISON: Final = Counter(
    "async_email_poison_messages_total", "Messages that were no doorbell.", registry=REGISTRY
)
SEND_SECONDS: Final = Histogram(
    "async_email_smtp_send_duration_seconds",
    "Time of one SMTP transaction, from MAIL to the last reply.",
    buckets=_LONG_SECONDS,
    registry=REGISTRY,
)
END_TO_END_SECONDS: Final = Histogram(
    "async_email_job_end_to_end_seconds",
    "Time from the accept of a job to its end, for jobs that were sent.",
    buckets=_LONG_SECONDS,
    registry=REGISTRY,
)
RELAY_REPLIES: Final = Counter(
    "async_email_relay_replies_total",
    "Decisive replies of the relay, one a recipient, by class and by the step they answer.",
    ("step", "reply_class"),
    registry=REGISTRY,
)
RELAY_ERRORS: Final = Counter(
    "async_email_relay_connect_errors_total",
    "Sessions with the relay that could not be opened.",
    registry=REGISTRY,
)
RELAY_CONNECTIONS: Final = Gauge(
    "async_email_relay_connections", "Open sessions with the relay.", registry=REGISTRY
)
IN_FLIGHT: Final = Gauge(
    "async_email_mails_in_flight", "Jobs this consumer holds a claim on.", registry=REGISTRY
)

# How the ledger and the queue stand; both programs show them

JOBS: Final = Gauge(
    "async_email_jobs",
    "Jobs in the ledger by status; finished ones are counted since the ledger began.",
    ("status",),
    registry=REGISTRY,
)
OLDEST_DUE_AGE_SECONDS: Final = Gauge(
    "async_email_oldest_due_age_seconds",
    "By how much the oldest due job is overdue.",
    registry=REGISTRY,
)
CONSUMERS: Final = Gauge(
    "async_email_consumers", "Consumers that were seen in the last 30 seconds.", registry=REGISTRY
)
LEDGER_AGE_SECONDS: Final = Gauge(
    "async_email_ledger_age_seconds",
    "Time since the ledger began; it falls when everything in it was lost.",
    registry=REGISTRY,
)
LEDGER_UP: Final = Gauge(
    "async_email_ledger_up", "1 when the ledger answered last time, else 0.", registry=REGISTRY
)
LEDGER_EMPTIED: Final = Counter(
    "async_email_ledger_emptied_total",
    "Times that the ledger was found to have begun anew: everything in it was lost.",
    registry=REGISTRY,
)
LEDGER_DURABLE: Final = Gauge(
    "async_email_ledger_durable",
    "1 when the ledger's server syncs every write and evicts nothing, else 0.",
    registry=REGISTRY,
)
QUEUE_DEPTH: Final = Gauge(
    "async_email_queue_depth", "Doorbells waiting in the broker's queue.", registry=REGISTRY
)

for _outcome in FINISHED:
    FINISHED_JOBS.labels(outcome=_outcome)

# Where a metric is touched for every mail or request, its child is looked up once.
claim_result = cache(CLAIMS.labels)
finished = cache(FINISHED_JOBS.labels)
relay_reply = cache(RELAY_REPLIES.labels)
http_seconds = cache(HTTP_SECONDS.labels)
http_requests = cache(HTTP_REQUESTS.labels)


def show_census(census: Census) -> None:
    """Bring the gauges to what the ledger says."""
    LEDGER_UP.set(1)
    for status, count in census.counts.items():
        JOBS.labels(status=status).set(count)
    OLDEST_DUE_AGE_SECONDS.set(census.oldest_due_age_ms / 1000)
    CONSUMERS.set(census.consumers)
    LEDGER_AGE_SECONDS.set(census.age_ms / 1000)
