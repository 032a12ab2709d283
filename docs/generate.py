"""Writes the generated parts of the documents anew: settings, diagram of statuses, measured figures.

``./run docs`` runs it; a test holds the documents to what it would write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mailjob.lifecycle import FINISHED, TRANSITIONS
from mailjob.settings import settings_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PERFORMANCE = HERE / "performance.md"
PICTURES = HERE / "pictures"
RESULTS = HERE.parent / "benchmarks/results"

AT_A_GIVEN_RATE = "ours, 100 a second"

UNITS = {"rate": "/s", "megabytes": "MB", "cpu_us": "us of CPU each", "median_ms": "ms", "p99_ms": "ms"}


def status_diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> queued"]
    lines += [
        f"    {status} --> {following}"
        for status, allowed in TRANSITIONS.items()
        for following in sorted(allowed)
    ]
    lines += [f"    {status} --> [*]" for status in TRANSITIONS if status in FINISHED]
    return "\n".join([*lines, "```"])


def settings_rows() -> str:
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {default} | {allowed} | {meaning} |"
        for name, default, allowed, meaning in settings_table()
    ]
    return "\n".join(lines)


def newest_results() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(max(RESULTS.glob("*.json")).read_text(encoding="utf-8"))
    return document


def performance_tables(document: Mapping[str, Any]) -> str:
    """A table of targets, and one of figures for each suite."""
    lines = ["| measure | value | wanted | |", "|---|---|---|---|"]
    for suite in document["suites"].values():
        for row in suite["targets"]:
            bound = "at most" if row["bound"] == "most" else "at least"
            value = f"**{row['value']:,.4g}** {row['unit']}"
            met = "" if row["met"] else "not met"
            lines.append(f"| {row['what']} | {value} | {bound} {row['wanted']:,.3g} | {met} |")
    for suite in document["suites"].values():
        columns = dict.fromkeys(
            name for row in suite["figures"].values() for name in row if name in UNITS
        )
        heads = [f"{name.split('_')[0]} ({UNITS[name]})" for name in columns]
        lines += ["", f"**{suite['title']}** (medians of {suite['rounds']})", ""]
        lines += [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
        for system, row in suite["figures"].items():
            cells = [f"{row[name]:,.4g}" if name in row else "" for name in columns]
            lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_rates(document: Mapping[str, Any]) -> str:
    """Bars for the rates beside the peers', as SVG. Each suite has a scale of its own."""
    bar, left, right, width = 20, 190, 90, 760
    rows: list[str] = []
    y = 10
    for suite in (document["suites"][name] for name in ("accept", "deliver", "far", "whole")):
        rates = {
            system: figures["rate"]
            for system, figures in suite["figures"].items()
            if system != AT_A_GIVEN_RATE
        }
        rows.append(f'<text x="8" y="{y + 24}" class="title">{escape(suite["title"])}</text>')
        y += 34
        for system, rate in sorted(rates.items(), key=lambda item: -item[1]):
            length = max(1.0, (width - left - right) * rate / max(rates.values()))
            kind = "ours" if system.startswith("ours") else "other"
            rows.append(
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(system)}</text>'
                f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar - 5}" class="{kind}"/>'
                f'<text x="{left + length + 6:.0f}" y="{y + 13}">{rate:,.0f}</text>'
            )
            y += bar
    return _svg(width, y + 14, rows)


def draw_scale(document: Mapping[str, Any]) -> str:
    """The rate of one, two and three processes of each program, as a curve for each, in SVG."""
    figures = document["suites"]["scale"]["figures"]
    left, bottom, step, height = 70, 250, 220, 220
    highest = max(row["rate"] for row in figures.values())
    parts = []
    for mark in range(0, int(highest) + 1, 1000):
        y = bottom - height * mark / highest
        parts.append(
            f'<path d="M{left} {y:.0f}H{left + 2 * step + 40}" class="grid"/>'
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{mark:,}</text>'
        )
    for number in (1, 2, 3):
        x = left + step * (number - 1) + 20
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{number}</text>')
    for program, kind in (("services", "accepts"), ("consumers", "mails")):
        points = [
            (left + step * (number - 1) + 20, bottom - height * rate / highest)
            for number in (1, 2, 3)
            for rate in [figures[f"{number} {program}"]["rate"]]
        ]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        x, y = points[-1]
        parts.append(
            f'<polyline points="{line}" class="{program}"/>'
            f'<text x="{x + 26:.0f}" y="{y + 4:.0f}">{kind}/s by {program}</text>'
        )
    parts.append(f'<text x="{left}" y="{bottom + 42}">processes, on two cores with all else</text>')
    return _svg(760, bottom + 60, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    style = (
        "text{font:12px sans-serif;fill:#1f2933}.title{font-weight:bold}"
        ".ours{fill:#1d5fa8}.other{fill:#b6c2cf}.grid{stroke:#e1e6eb}"
        "polyline{fill:none;stroke-width:2}.services{stroke:#b5651d}.consumers{stroke:#1d5fa8}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def render(document: Path) -> str:
    """One of the documents with its generated parts as they should be."""
    text = document.read_text(encoding="utf-8")
    parts = {"statuses": status_diagram, "settings": settings_rows}
    if document == PERFORMANCE:
        parts = {"performance": lambda: performance_tables(newest_results())}
    for name, make in parts.items():
        part = make()
        begin, end = f"<!-- {name}: made by ./run docs -->\n", f"\n<!-- end of {name} -->"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise ValueError(f"{document.name} lacks the marks of its part {name}")
        text = before + begin + part + end + after
    return text


if __name__ == "__main__":
    for document in (README, PERFORMANCE):
        document.write_text(render(document), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, draw in (("performance", draw_rates), ("scale", draw_scale)):
        (PICTURES / f"{name}.svg").write_text(draw(newest_results()), encoding="utf-8")
