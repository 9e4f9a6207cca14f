"""`python -m tests.sim.mix`: many calls at random, and a table of what came of them. Exit status 1 when anything differs.

A difference is printed with its seed and the ladder of its call; `--seed N` runs that world alone, `--calls` being its calls.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tests.sim.mix.run import CALLS_PER_WORLD, Result, run_world

if TYPE_CHECKING:
    from collections.abc import Iterator

SAY_EVERY_S = 10.0
SHOWN = 10  # differences whose ladder is printed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.mix", description="A random mix of calls on the virtual network."
    )
    parser.add_argument("--calls", type=int, default=100_000, help="how many calls (default 100,000)")
    parser.add_argument("--first-seed", type=int, default=1, help=f"of the first world of {CALLS_PER_WORLD} calls")
    parser.add_argument("--seed", type=int, help="this world alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--relapses", action="store_true", help="the node often dies again soon after a restart")
    given = parser.parse_args()
    begun = said = time.monotonic()
    total = Result()
    try:
        for found in worlds(given):
            total.add(found)
            for difference in found.differences:
                if len(total.differences) <= SHOWN:
                    print(difference.what, difference.ladder, "", sep="\n")
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                print(f"{said - begun:6.0f} s  {total.calls:7} calls, {len(total.differences)} differences", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {total.calls} of {given.calls} calls")
    print(table(total, time.monotonic() - begun), flush=True)
    return 1 if total.differences else 0


def worlds(given: argparse.Namespace) -> Iterator[Result]:
    if given.seed is not None:
        yield run_world(given.seed, min(given.calls, CALLS_PER_WORLD), relapses=given.relapses)
        return
    sizes = [CALLS_PER_WORLD] * (given.calls // CALLS_PER_WORLD)
    if given.calls % CALLS_PER_WORLD:
        sizes.append(given.calls % CALLS_PER_WORLD)
    seeds = range(given.first_seed, given.first_seed + len(sizes))
    run_one = partial(run_world, relapses=given.relapses)
    if given.jobs <= 1:
        yield from map(run_one, seeds, sizes)
        return
    with ProcessPoolExecutor(given.jobs, max_tasks_per_child=50) as pool:
        yield from pool.map(run_one, seeds, sizes)


def table(total: Result, seconds: float) -> str:
    """What came of it all, for people."""
    counts, errors = total.totals, sorted(total.errors_ms)
    lines = ["", f"{'behaviour':28}{'calls':>8}"]
    lines += [f"{name:28}{count:8}" for name, count in sorted(total.by_name.items())]
    lines += ["", f"{'end in the record':28}{'calls':>8}"]
    lines += [f"{name:28}{count:8}" for name, count in total.by_reason.most_common()]
    lines += ["", f"{'what the caller got':28}{'calls':>8}"]
    lines += [f"{status or 'nothing':<28}{count:8}" for status, count in sorted(total.by_final.items())]
    rows = {
        "calls": total.calls,
        "worlds": total.worlds,
        "records": counts["records"],
        "datagrams": counts["datagrams"],
        "of these lost": counts["lost"],
        "kills of the node": counts["kills"],
        "calls taken up again": counts["resumed"],
        "calls cut by a kill": counts["cut"],
        "calls it died with in hand": counts["doubtful"],
        "quiet points compared": counts["quiet"],
        "durations certain": counts["certain"],
        "durations uncertain": counts["uncertain"],
        "errors of the certain, p50": f"{errors[len(errors) // 2]:.2f} ms" if errors else "-",
        "errors of the certain, most": f"{errors[-1]:.2f} ms" if errors else "-",
        "seconds": f"{seconds:.0f}",
        "differences": len(total.differences),
    }
    return "\n".join([*lines, "", *(f"{name:28}{value:>12}" for name, value in rows.items())])


if __name__ == "__main__":
    sys.exit(main())
