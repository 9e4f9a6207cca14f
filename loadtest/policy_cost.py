"""What policy costs at the size of a large carrier: time of a decision, of a batch, of a new snapshot, and its memory.

No network and no store: made-up lines and rules, random calls from a seed. Times are CPU time of this process, so that what
else the machine does counts little.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import random
import time
import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

from policy import evaluate, profiles
from policy.build import snapshot_of
from policy.explain import BATCH_IN, batch_csv
from policy.lint import check_rules
from policy.model import (
    Account,
    AccountKind,
    BlockRule,
    CallAttempt,
    Direction,
    Line,
    LineStatus,
    PsapRoute,
    RuleAction,
    RuleDirection,
    RuleKind,
    RuleLevel,
)
from policy.windows import parse_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Snapshot

__all__ = ["Cost", "carrier", "measure"]

LINES = 50_000
RULES = 20_000
ROWS = 100_000
CALLS = 20_000
NOW_MS = 1_790_000_000_000


class Cost(NamedTuple):
    """Measured figures. `evaluate_us` is the mean of outgoing calls, `incoming_us` of incoming ones."""

    lines: int
    rules: int
    build_s: float  # a snapshot from its parts
    swap_us: float  # its taking the place of the last one
    memory_mb: float
    evaluate_us: float
    worst_us: float  # 99.9th percentile
    incoming_us: float
    few_rules_us: float  # the same calls with a tenth of the rules
    batch_rows_s: float
    lint_s: float


def carrier(lines: int = LINES, rules: int = RULES) -> Snapshot:
    """Lines of one number each, and rules of all kinds: half of them customers' own, a third with times."""
    chance = random.Random(3)
    found_lines, accounts = [], []
    for number in range(lines):
        user = f"u{number:06d}"
        found_lines.append(Line(f"L{number:06d}", "velbert", LineStatus.ACTIVE, None, "town", "02051", (user,)))
        accounts.append(Account(user, f"L{number:06d}", AccountKind.SINGLE, {"MD5": "0" * 32}, (f"+4920517{number:06d}",)))
    routes = [PsapRoute("town", service, 1, f"sip:{service}@psap.example") for service in ("110", "112")]
    return snapshot_of(
        1, found_lines, accounts, profiles.load(), routes, [_rule(number, lines, chance) for number in range(rules)]
    )


def _rule(number: int, lines: int, chance: random.Random) -> BlockRule:
    own = number % 2 == 0
    kind = (RuleKind.PREFIX, RuleKind.PREFIX, RuleKind.NUMBER, RuleKind.CLASS)[number % 4] if own else RuleKind.PREFIX
    value = f"+{chance.choice((43, 44, 49137, 49900, 33, 7))}{chance.randrange(10 ** chance.randrange(1, 8))}"
    timed = parse_windows("mo-fr 08:00-17:00; sa 09:00-12:00") if number % 3 == 0 else ()
    return BlockRule(
        f"r{number}",
        "mobile" if kind is RuleKind.CLASS else value,
        "measured",
        line=f"L{chance.randrange(lines):06d}" if own else "",
        kind=kind,
        action=RuleAction.ALLOW if number % 7 == 0 else RuleAction.BLOCK,
        direction=RuleDirection.BOTH if number % 5 == 0 else RuleDirection.OUTGOING,
        level=RuleLevel.CUSTOMER if own else RuleLevel.ADMIN,
        windows=timed,
    )


def measure(lines: int = LINES, rules: int = RULES, rows: int = ROWS, calls: int = CALLS) -> Cost:
    """All figures; takes about half a minute at the default size."""
    gc.collect()
    tracemalloc.start()
    snapshot = carrier(lines, rules)
    gc.collect()
    memory_mb = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    build_s = _seconds(lambda: dataclasses.replace(_rebuilt(snapshot)))
    holder = [snapshot]
    other = _rebuilt(snapshot)
    swap_us = _seconds(lambda: holder.__setitem__(0, other)) * 1e6
    outgoing = _attempts(snapshot, calls)
    few = dataclasses.replace(snapshot, blocks=snapshot.blocks[: rules // 10])
    each = sorted(_each(outgoing, snapshot))
    text = _batch(rows)
    return Cost(
        lines=lines,
        rules=rules,
        build_s=build_s,
        swap_us=swap_us,
        memory_mb=memory_mb,
        evaluate_us=_mean_us(outgoing, snapshot),
        worst_us=each[int(len(each) * 0.999)],
        incoming_us=_mean_us(_incoming(snapshot, calls), snapshot),
        few_rules_us=_mean_us(outgoing, few),
        batch_rows_s=rows / _seconds(lambda: batch_csv(text, file="rows", snapshot=snapshot, now_at_ms=NOW_MS)),
        lint_s=_seconds(lambda: check_rules(snapshot.blocks, snapshot.profiles, snapshot.lines, NOW_MS)),
    )


def _rebuilt(snapshot: Snapshot) -> Snapshot:
    routes = [route for found in snapshot.psap.values() for route in found]
    return snapshot_of(2, snapshot.lines.values(), snapshot.accounts.values(), snapshot.profiles, routes, snapshot.blocks)


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _targets(chance: random.Random, count: int) -> list[str]:
    heads = ("030", "02051", "0171", "0900", "0137", "0043", "+44", "+43", "+4930", "01806", "0800", "118", "112", "+7")
    return [f"{chance.choice(heads)}{chance.randrange(10**7):07d}" for _ in range(count)]


def _attempts(snapshot: Snapshot, count: int) -> list[CallAttempt]:
    chance = random.Random(4)
    lines = list(snapshot.lines.values())
    found = []
    for target in _targets(chance, count):
        line = lines[chance.randrange(len(lines))]
        account = snapshot.accounts[line.accounts[0]]
        uri = f"sip:{target}@sip.example;user=phone".encode()
        found.append(CallAttempt(Direction.OUTGOING, uri, line, account, caller=account.numbers[0], slots_used=0, setups=0))
    return found


def _incoming(snapshot: Snapshot, count: int) -> list[CallAttempt]:
    chance = random.Random(5)
    numbers = list(snapshot.numbers)
    callers = [f"+49301{chance.randrange(10**7):07d}" for _ in range(count)]
    return [
        CallAttempt(Direction.INCOMING, chance.choice(numbers).encode(), caller=caller, network=caller, slots_used=0)
        for caller in callers
    ]


def _mean_us(attempts: list[CallAttempt], snapshot: Snapshot) -> float:
    def work() -> None:
        for attempt in attempts:
            evaluate(attempt, snapshot, NOW_MS)

    return min(_seconds(work) for _ in range(3)) / len(attempts) * 1e6


def _each(attempts: list[CallAttempt], snapshot: Snapshot) -> list[float]:
    def one(attempt: CallAttempt) -> float:
        began = time.process_time()
        evaluate(attempt, snapshot, NOW_MS)
        return (time.process_time() - began) * 1e6

    return [one(attempt) for attempt in attempts]


def _batch(rows: int) -> str:
    chance = random.Random(6)
    text = io.StringIO()
    text.write(",".join(BATCH_IN) + "\n")
    for number, target in enumerate(_targets(chance, rows)):
        text.write(f"{number},velbert,02051,+4920517{chance.randrange(LINES):06d},{target}\n")
    return text.getvalue()


def main() -> None:
    """Print the figures, one a line."""
    for name, value in measure()._asdict().items():
        print(f"{name:<14} {value:,.2f}" if isinstance(value, float) else f"{name:<14} {value:,}")


if __name__ == "__main__":
    main()
