"""`python -m tests.torture`: all of the corpora against a real node, and what it held and used. Exit status 1 for any fault."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from loadtest.generate import percentile
from tests.torture.run import manifests, opened, protos

LEFT_S = 90.0  # RFC 3261 §17: transactions last 32 s, and the parties' refusals are repeated for as long
GROWTH = 8 * 1024 * 1024  # bytes that the passes after the first may add


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
        messages, sizes = protos(), []
        for number in range(passes):
            for tcp in (False, True):
                sent = await torture.hammer(messages, tcp=tcp)
                print(f"pass {number + 1}: {sent} PROTOS messages over {'TCP' if tcp else 'UDP'}", flush=True)
            left = await torture.left(timeout_s=LEFT_S)
            sizes.append(node.memory_bytes())
            print(f"pass {number + 1}: left behind {left or 'nothing'}, memory {sizes[-1] / 2**20:.1f} MiB", flush=True)
            faults += bool(left)
        growth = sizes[-1] - sizes[0]
        troubles = torture.troubles()
        print(f"growth after the first pass {growth / 2**10:.0f} KiB; {len(troubles)} lines of trouble in the log")
        print("\n".join(troubles[:10]))
        late = torture.late_ms
        shown = ", ".join(
            f"{name} {percentile(late, share):.1f}" for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "max"))
        )
        print(f"{len(late)} OPTIONS in {time.monotonic() - began:.0f} s, all answered; ms: {shown}")
        faults += len(troubles) + (growth > GROWTH)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="The message corpora against a real node.")
    parser.add_argument("--passes", type=int, default=3, help="times that PROTOS is sent (default %(default)s)")
    return 1 if asyncio.run(run(parser.parse_args().passes)) else 0


if __name__ == "__main__":
    sys.exit(main())
