from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mailjob.meters import REGISTRY


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("async_email_jobs_accepted", "counter"),
        ("async_email_jobs_finished", "counter"),
        ("async_email_http_request_duration_seconds", "histogram"),
        ("async_email_smtp_send_duration_seconds", "histogram"),
        ("async_email_job_end_to_end_seconds", "histogram"),
        ("async_email_jobs", "gauge"),
        ("async_email_oldest_due_age_seconds", "gauge"),
        ("async_email_queue_depth", "gauge"),
    ],
)
def test_promised_metrics_are_there(name: str, kind: str) -> None:
    families = {family.name: family for family in REGISTRY.collect()}
    assert families[name].type == kind


def test_every_metric_of_ours_has_our_prefix_help_and_a_base_unit() -> None:
    for family in REGISTRY.collect():
        if family.name.startswith(("process_", "python_")):
            continue
        assert family.name.startswith("async_email_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_minutes"))


def test_the_text_form_parses() -> None:
    assert list(text_string_to_metric_families(generate_latest(REGISTRY).decode()))
