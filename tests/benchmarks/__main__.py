"""`python -m tests.benchmarks [NAME]…`: measure, and print one table."""

from __future__ import annotations

import os

# Before torch: another torch process that spins while it waits would be measured too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import importlib

from tests.benchmarks.measure import Row, SkippedError, machine_facts, table

NAMES = (
    "run", "lens", "grid", "peer", "start", "moments", "fits", "tuned", "linearity", "memory", "explorer", "rope", "attention",
    "head_grid", "three_phase", "phase_wheel",
)  # fmt: skip


def main() -> None:
    """Run the benchmarks that were asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds of which the minimum counts (default 7)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    rows: list[Row] = []
    for name in options.names or NAMES:
        print(f"measuring {name} …", flush=True)
        try:
            rows += importlib.import_module(f"tests.benchmarks.{name}").rows(options.repeats)
        except SkippedError as reason:
            print(f"skipped {name}: {reason}", flush=True)
    print("", table(rows), "", machine_facts(), sep="\n")


if __name__ == "__main__":
    main()
