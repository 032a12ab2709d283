"""What Prometheus and Grafana are told fits the catalogue of metrics, and each alert has its page."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mailjob.lifecycle import Status
from mailjob.meters import REGISTRY

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "ops/prometheus"
GRAFANA = ROOT / "ops/grafana"
RECORDING = PROMETHEUS / "rules/recording.yml"
ALERTS = (PROMETHEUS / "rules/alerts.yml").read_text()
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
DASHBOARDS = sorted(GRAFANA.glob("dashboards/*.json"))
FILES = [
    path for folder in (PROMETHEUS, GRAFANA) for path in sorted(folder.glob("**/*")) if path.is_file()
]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

alert_names = re.findall(r"^ +- alert: (\w+)$", ALERTS, re.MULTILINE)
sections = re.findall(r"^## (AsyncEmail\w+)$", RUNBOOK, re.MULTILINE)


def sample_names() -> set[str]:
    return {
        family.name + suffix
        for family in REGISTRY.collect()
        if family.name.startswith("async_email_")
        for suffix in SUFFIXES[family.type]
    }


def panels(dashboard: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


@pytest.mark.parametrize("file", [*FILES, ROOT / "docs/runbook.md"], ids=lambda path: path.name)
def test_every_metric_that_is_named_exists(file: Path) -> None:
    named = set(re.findall(r"\basync_email_[a-z0-9_]+", file.read_text()))
    assert named - sample_names() == set()


def test_what_is_recorded_is_used_and_the_other_way_round() -> None:
    recorded = re.findall(r"- record: (\S+)", RECORDING.read_text())
    assert len(recorded) == len(set(recorded)) > 10
    users = "".join(file.read_text() for file in FILES if file != RECORDING)
    assert set(re.findall(r"\basync_email:[\w:]+", users)) == set(recorded)


def test_every_metric_is_on_a_dashboard() -> None:
    shown = "".join(path.read_text() for path in [*DASHBOARDS, RECORDING])
    assert not {name for name in sample_names() if not name.endswith(("_sum", "_count"))} - set(
        re.findall(r"async_email_[a-z0-9_]+", shown)
    )


def test_dashboards_have_stable_names() -> None:
    assert [json.loads(path.read_text())["uid"] for path in DASHBOARDS] == [
        "async-email-deliverability",
        "async-email-internals",
        "async-email-overview",
    ]
    assert len({json.loads(path.read_text())["schemaVersion"] for path in DASHBOARDS}) == 1


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_complete_and_do_not_overlap(dashboard: Path) -> None:
    identities = [panel["id"] for panel in panels(dashboard)]
    assert len(identities) == len(set(identities))
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = set(
            product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_the_data_source_can_be_chosen(dashboard: Path) -> None:
    (variable,) = json.loads(dashboard.read_text())["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )


def test_every_alert_has_a_section_in_the_runbook_and_the_other_way_round() -> None:
    assert len(alert_names) == len(set(alert_names)) > 15
    assert sorted(sections) == sorted(alert_names)


@pytest.mark.parametrize("name", alert_names)
def test_every_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = re.split(r"^ +- alert: ", ALERTS.partition(f"- alert: {name}\n")[2], flags=re.MULTILINE)[0]
    assert re.search(r"^ +severity: (critical|warning)$", alert, re.MULTILINE)
    assert re.search(r"^ +summary: \S", alert, re.MULTILINE)
    assert re.search(r"^ +description: \S", alert, re.MULTILINE)
    assert re.search(rf"^ +runbook_url: docs/runbook\.md#{name.lower()}$", alert, re.MULTILINE)


@pytest.mark.parametrize("name", alert_names)
def test_every_alert_has_a_unit_test(name: str) -> None:
    assert f'alertname="{name}"' in (PROMETHEUS / "tests/alerts.yml").read_text()


@pytest.mark.parametrize("name", sections)
def test_every_section_has_its_four_parts(name: str) -> None:
    section = RUNBOOK.partition(f"## {name}\n")[2].partition("\n## ")[0]
    parts = re.findall(r"^\*\*(Means|Look|Do|Do not)\.?\*\*", section, re.MULTILINE)
    assert parts == ["Means", "Look", "Do", "Do not"]


def test_every_log_event_that_the_runbook_looks_for_is_logged() -> None:
    sources = "".join(
        path.read_text()
        for package in ("mailjob", "service", "consumer")
        for path in (ROOT / package).glob("**/*.py")
    )
    events = set(re.findall(r"grep '\"event\":\"(\w+)\"'", RUNBOOK))
    assert len(events) > 5
    of_jobs = {f"job_{status}" for status in Status}
    assert not {event for event in events - of_jobs if f'"{event}"' not in sources}
