"""Figures as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.experiments import Figures
from benchmarks.suites import Suite

RESULTS: Final = Path(__file__).parent / "results"

UNITS: Final = {"rate": "/s", "megabytes": " MB", "cpu_us": " us of CPU each"}

BAR, LEFT, RIGHT, WIDTH = 20, 190, 90, 760


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


def newest() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(max(RESULTS.glob("*.json")).read_text())
    return document


def draw(document: Mapping[str, Any], suites: Sequence[str]) -> str:
    """Bars of the rates of these suites, as SVG; ours are dark. Each suite has a scale of its own."""
    rows: list[str] = []
    y = 10
    for name in suites:
        suite = document["suites"][name]
        rates = {system: figures["rate"] for system, figures in suite["figures"].items()}
        y += 24
        rows.append(f'<text x="8" y="{y}" class="title">{escape(suite["title"])}</text>')
        y += 10
        for system, rate in sorted(rates.items(), key=lambda item: -item[1]):
            length = max(1.0, (WIDTH - LEFT - RIGHT) * rate / max(rates.values()))
            kind = "ours" if system.startswith("ours") else "other"
            rows.append(
                f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(system)}</text>'
                f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{BAR - 5}" class="{kind}"/>'
                f'<text x="{LEFT + length + 6:.0f}" y="{y + 13}">{rate:,.0f}</text>'
            )
            y += BAR
    style = (
        "text{font:12px sans-serif;fill:#1f2933}.title{font-weight:bold}"
        ".ours{fill:#1d5fa8}.other{fill:#b6c2cf}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 14}" '
        f'viewBox="0 0 {WIDTH} {y + 14}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(rows)}</svg>\n'
    )
