"""A real Prometheus with our rules beside the real programs; every query of every dashboard answers."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from postfix import tool
from programs import ask, free_port, wait_until
from system_under_test import System

ROOT = Path(__file__).parents[2]
OURS = ROOT / "ops/prometheus"
SELECTOR = re.compile(r"\basync_email[\w:]+(?:\{[^}]*\})?")
DASHBOARDS = sorted((ROOT / "ops/grafana/dashboards").glob("*.json"))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments], capture_output=True, text=True, check=False, cwd=OURS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(OURS.glob("rules/*.yml")))


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", *sorted(OURS.glob("tests/*.yml")))


class Prometheus:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            return ask(f"{self.address}/-/ready").status == 200
        except OSError:
            return False

    def get(self, path: str, **values: str) -> Any:
        answer = ask(f"{self.address}/api/v1/{path}?{urlencode(values)}")
        assert answer.status == 200, (values, answer.body)
        return answer.json["data"]

    def values(self, expression: str) -> list[float]:
        """What the expression gives now, without what is no number. Fails where it is invalid."""
        found = self.get("query", query=expression)["result"]
        return [number for row in found if math.isfinite(number := float(row["value"][1]))]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def run_prometheus(api: str, consumer: str) -> Iterator[Prometheus]:
    """Debian's Prometheus with our configuration: other ports, and fifteen times as fast."""
    with tempfile.TemporaryDirectory(prefix="prometheus-", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        shutil.copytree(OURS, folder / "etc")
        configuration = folder / "etc/prometheus.yml"
        changes = {"127.0.0.1:8000": api, "127.0.0.1:9102": consumer, "interval: 15s": "interval: 1s"}
        configuration.write_text(changed(configuration.read_text(), changes))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            prometheus = Prometheus(port)
            wait_until(prometheus.ready, what="Prometheus")
            yield prometheus
        finally:
            process.terminate()
            process.wait(20)


NEVER_HERE = ("async_email_claims_lost_total", 'status=~"5.."')
"""In selectors that match nothing as long as all is well."""


def queries() -> dict[str, str]:
    """Each query of each panel by where it stands."""
    return {
        f"{dashboard.stem}: {panel['title']} {target['refId']}": target["expr"].replace(
            "$__rate_interval", "10s"
        )
        for dashboard in DASHBOARDS
        for panel in json.loads(dashboard.read_text())["panels"]
        for target in panel.get("targets", [])
    }


def selectors(expressions: Iterable[str]) -> dict[str, str]:
    """Each selector in them as a query: one that is misspelt would hide behind `or vector(0)`."""
    found = {selector for expression in expressions for selector in SELECTOR.findall(expression)}
    return {
        selector: selector for selector in found if not any(never in selector for never in NEVER_HERE)
    }


def test_a_real_prometheus_answers_every_panel_and_rule(system: System) -> None:
    system.start("service")
    consumer = system.start("consumer")
    numbers = count()

    def load() -> None:
        """Some mails: sent, refused, deferred at first, and lost after the final dot at first."""
        number = next(numbers)
        for fault in ("", "rcpt-550+", "rcpt-450-x1+", "drop-dot-x1+"):
            system.accept("Ada", f"{fault}ada{number}@example.org")
        assert ask(f"{system.api}/jobs/none").status == 404

    with run_prometheus(
        system.settings["API_BIND"], consumer.settings["CONSUMER_METRICS_BIND"]
    ) as prometheus:
        panels = queries()
        rules = {rule["name"]: rule["query"] for rule in prometheus.rules()}
        recordings = {name: query for name, query in rules.items() if ":" in name}
        assert len(panels) > 60
        assert not [query for query in panels.values() if "$" in query]
        empty = panels | recordings | selectors([*panels.values(), *rules.values()])

        def all_have_data() -> bool:
            load()
            for place in [place for place, query in empty.items() if prometheus.values(query)]:
                del empty[place]
            return not empty

        try:
            wait_until(all_have_data, 60)
        except AssertionError as error:
            raise AssertionError(f"no data for {empty}") from error

        annotations = [
            annotation["expr"]
            for dashboard in DASHBOARDS
            for annotation in json.loads(dashboard.read_text())["annotations"]["list"]
        ]
        for query in [*rules.values(), *annotations]:
            prometheus.values(query)
        wait_until(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()))
        assert not [rule for rule in prometheus.rules() if rule["health"] != "ok"]
        wait_until(lambda: "AsyncEmailAmbiguousMails" in json.dumps(prometheus.get("alerts")))
        assert "error expanding template" not in json.dumps(prometheus.get("alerts"))
