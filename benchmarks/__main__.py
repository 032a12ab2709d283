"""``./run bench [SUITE...]``: this system beside its peers, in turn, against the same sink.

Every write of this system is synced (``appendfsync always``). Prints medians and whether the targets are
met, and writes benchmarks/results/<date>.json. The figures of one run are comparable, those of two
machines are not: quote the ratios.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import report
from benchmarks.suites import Suite, suites


def measure(suite: Suite, rounds: int) -> dict[str, Any]:
    """Every system once, then all again: what the machine does meanwhile meets them all."""
    print(f"{suite.name}: {suite.title}")
    for peer in suite.needs:
        peer.install()
    figures: dict[str, list[Any]] = {name: [] for name in suite.measures}
    for number in range(rounds):
        # There and back: what drifts on the machine while it is measured falls on all alike.
        for name in list(suite.measures)[:: -1 if number % 2 else 1]:
            figures[name].append(suite.measures[name]())
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
    options = parser.parse_args()
    if unknown := set(options.suite) - set(known):
        parser.error(f"there is no suite {', '.join(unknown)}; there are {', '.join(known)}")
    for suite in suites(options.scale):
        if suite.name in (options.suite or known):
            path = report.write_json({suite.name: measure(suite, options.rounds or suite.rounds)})
    print(f"written to {path}; ./run docs makes tables and a picture of it")


if __name__ == "__main__":
    main()
