"""Writes the generated parts of the README anew: the settings table and the diagram of statuses.

``./run docs`` runs it; a test holds the README to what it would write.
"""

from __future__ import annotations

from pathlib import Path

from mailjob.lifecycle import FINISHED, TRANSITIONS
from mailjob.settings import settings_table

README = Path(__file__).parent.parent / "README.md"


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


def render(text: str) -> str:
    """The README with its generated parts as they should be."""
    for name, part in (("statuses", status_diagram()), ("settings", settings_rows())):
        begin, end = f"<!-- {name}: made by ./run docs -->\n", f"\n<!-- end of {name} -->"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise ValueError(f"the README lacks the marks of its part {name}")
        text = before + begin + part + end + after
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
