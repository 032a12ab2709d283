"""``./run bench [SUITE...]``: this system beside its peers, in turn, against the same sink.

Every write of this system is synced (``appendfsync always``). Prints medians and whether the targets are
met, and writes benchmarks/results/<date>.json. The figures of one run are comparable, those of two
machines are not: quote the ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.suites import Suite, suites

PICTURE: Final = Path(__file__).parent.parent / "docs/pictures/performance.svg"
SHOWN: Final = ("accept", "deliver", "far", "whole")


def measure(suite: Suite, rounds: int) -> dict[str, Any]:
    """Every system once, then all again: what the machine does meanwhile meets them all."""
    print(f"{suite.name}: {suite.title}")
    for peer in suite.needs:
        peer.install()
    figures: dict[str, list[Any]] = {name: [] for name in suite.measures}
    for _ in range(rounds):
        for name, run in suite.measures.items():
            figures[name].append(run())
    results = {name: report.medians(rounds_of) for name, rounds_of in figures.items()}
    for name, row in results.items():
        report.print_figures(name, row)
    rows = report.verdicts(suite, results)
    report.print_verdicts(rows)
    return {"title": suite.title, "rounds": rounds, "figures": results, "targets": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    known = [suite.name for suite in suites(1.0)]
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(known)}; all where none is named")
    parser.add_argument("--rounds", type=int, help="repeat each this often")
    parser.add_argument("--scale", type=float, default=1.0, help="a part or a multiple of the mails")
    parser.add_argument("--draw", action="store_true", help="only draw the picture anew")
    options = parser.parse_args()
    if unknown := set(options.suite) - set(known):
        parser.error(f"there is no suite {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.draw:
        results = {
            suite.name: measure(suite, options.rounds or suite.rounds)
            for suite in suites(options.scale)
            if suite.name in (options.suite or known)
        }
        print(f"written to {report.write_json(results)}")
    document = report.newest()
    if all(name in document["suites"] for name in SHOWN):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(report.draw(document, SHOWN))


if __name__ == "__main__":
    main()
