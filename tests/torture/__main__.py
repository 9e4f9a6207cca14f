"""`python -m tests.torture`: all of the corpora against a real node, and what it held and used. Exit status 1 for any fault."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import TYPE_CHECKING

from loadtest.generate import percentile
from tests.torture.hammer import Hammer
from tests.torture.run import manifests, opened, protos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.torture.pulse import Pulse

LEFT_S = 90.0  # RFC 3261 §17: transactions last 32 s, and the parties' refusals are repeated for as long
GROWTH = 2 * 1024 * 1024  # bytes that the passes after the second may add: two fill every cache and the allocator's arenas
DEAREST = 100  # times the median that one message may cost: it is ten on a quiet machine, for those of 64 kB


def shown(values: Sequence[float]) -> str:
    return ", ".join(f"{name} {percentile(values, share):.2f}" for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")))


async def run(passes: int) -> int:
    faults = 0
    async with opened() as torture:
        node, began = torture.network.node, time.monotonic()
        outcomes = await manifests(torture)
        wrong = [outcome for outcome in outcomes if not outcome.ok]
        print(f"{len(outcomes)} outcomes of RFC 4475, RFC 5118 and advisories, {len(wrong)} not allowed")
        for outcome in wrong:
            print(f"  {outcome}")
        faults += len(wrong)
        messages, sizes, hammer = protos(), [], Hammer(torture)
        for number in range(passes):
            for tcp in (False, True):
                sent = await hammer.send(messages, tcp=tcp)
                print(f"pass {number + 1}: {sent} PROTOS messages over {'TCP' if tcp else 'UDP'}", flush=True)
            left = await torture.left(timeout_s=LEFT_S)
            sizes.append(node.memory_bytes())
            print(f"pass {number + 1}: left behind {left or 'nothing'}, memory {sizes[-1] / 2**20:.1f} MiB", flush=True)
            faults += bool(left)
        growth = sizes[-1] - sizes[min(1, passes - 1)]
        faults += await costs(hammer, messages)
        for fault in hammer.faults[:20]:
            print(f"  {fault}")
        troubles = torture.troubles()
        print(f"growth after the second pass {growth / 2**10:.0f} KiB; {len(troubles)} lines of trouble in the log")
        print("\n".join(troubles[:10]))
        await torture.pulse.settled()
        faults += said(torture.pulse, time.monotonic() - began)
        faults += len(hammer.faults) + len(troubles) + (growth > GROWTH)
    return faults


async def costs(hammer: Hammer, messages: list[bytes]) -> int:
    """What one message costs; how many cost far more than others."""
    found = [cost for tcp in (False, True) for cost in await hammer.costs(messages, tcp=tcp)]
    usual = sorted(cost.ms for cost in found)[len(found) // 2]
    print(f"CPU of one message and an OPTIONS, ms: {shown([cost.ms for cost in found])}")
    dearest = sorted(found, key=lambda cost: -cost.ms)[:3]
    print("dearest: " + "; ".join(f"{c.number} over {c.over} {c.ms:.2f} ms, {len(messages[c.number])} bytes" for c in dearest))
    return sum(cost.ms > DEAREST * usual for cost in found)


def said(pulse: Pulse, seconds: float) -> int:
    """What became of the OPTIONS; how many were not answered as they should."""
    wrong = len(pulse.wrong)
    print(f"{pulse.sent} OPTIONS in {seconds:.0f} s, {pulse.lost} not answered, {wrong} refused, {pulse.repeated} repetitions")
    print(f"answered after ms: {shown(pulse.ms)}; this program's own timers were late by {shown(pulse.late_ms)}")
    return pulse.lost + wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="The message corpora against a real node.")
    parser.add_argument("--passes", type=int, default=4, help="times that PROTOS is sent (default %(default)s)")
    return 1 if asyncio.run(run(parser.parse_args().passes)) else 0


if __name__ == "__main__":
    sys.exit(main())
