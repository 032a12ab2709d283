"""Figures on the terminal and as JSON; ``./run docs`` makes tables and the picture of that."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.experiments import Figures
from benchmarks.suites import Suite

RESULTS: Final = Path(__file__).parent / "results"

UNITS: Final = {"rate": "/s", "megabytes": " MB", "cpu_us": " us of CPU each"}


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def print_figures(name: str, figures: Figures) -> None:
    words = []
    for key, value in figures.items():
        unit = UNITS.get(key) or (" ms" if key.endswith("_ms") else "")
        label = "" if key in UNITS else key.removesuffix("_ms").replace("_", " ") + " "
        words.append(f"{label}{value:,.0f}{unit}" if value > 100 else f"{label}{value:.2f}{unit}")
    print(f"  {name:28} {', '.join(words)}", flush=True)


def verdicts(suite: Suite, results: Mapping[str, Figures]) -> list[dict[str, Any]]:
    return [
        {
            "what": target.what,
            "value": round(target.value(results), 3),
            "unit": target.unit,
            "wanted": target.wanted,
            "bound": "most" if target.most else "least",
            "met": target.met(target.value(results)),
        }
        for target in suite.targets
    ]


def print_verdicts(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        sign = "<=" if row["bound"] == "most" else ">="
        word = "met" if row["met"] else "NOT MET"
        value = f"{row['value']:,.2f} {row['unit']}"
        print(f"  {row['what']:36} {value:28} {sign} {row['wanted']:<8.4g} {word}")


def write_json(results: Mapping[str, Mapping[str, Any]]) -> Path:
    """One file a day; suites that did not run today keep what they had."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    document["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()}
    document.setdefault("suites", {}).update(results)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return path
