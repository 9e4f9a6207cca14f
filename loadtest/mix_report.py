"""What a run of a mix found, as a report: calls by outcome, delays that the proxy added, what it cost, who was the limit."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from loadtest.ending import INTERRUPTED
from loadtest.generate import percentile
from loadtest.report import Report, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.mixed import Ran, Sample
    from loadtest.seen import Series

__all__ = ["limits_of", "report_of", "steady_spans", "within"]

DELAYS = {
    "challenge": "INVITE until 407",
    "invite": "INVITE in until INVITE out",
    "answer": "200 in until 200 out",
    "setup": "first INVITE until 200, ringing included",
    "register": "REGISTER until 200",
}
BUSY_SHARE = 0.9  # of a core: from here on the generator has no time to be on time
LATE_MS = 20.0  # of its event loop, p99
LATE_STARTS = 0.01  # share of the calls
STILL_MS = 10.0  # that the generator's event loop ran late: what was due meanwhile, two calls at 200 a second, left at once
ADDED = ("invite", "answer")  # the delays that are the proxy's


def limits_of(ran: Ran) -> list[str]:
    """Why the generator itself was the limit, one reason each; empty when it was not."""
    seen, reasons = ran.seen, []
    share = ran.own_cpu_s / max(ran.seconds, 0.001)
    late_ms = percentile(ran.own_late_ms, 0.99)
    if share >= BUSY_SHARE:
        reasons.append(f"it used {100 * share:.0f} % of a core")
    if late_ms > LATE_MS:
        reasons.append(f"its event loop was late by {late_ms:.0f} ms (p99)")
    if seen.late_starts > LATE_STARTS * seen.placed.total():
        reasons.append(f"{seen.late_starts} calls began late")
    if seen.unstarted:
        reasons.append(f"{seen.unstarted} calls found no free account (accounts.count)")
    if ran.lost_sends:
        reasons.append(f"{ran.lost_sends} messages did not fit into its sockets")
    return reasons


def steady_spans(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """The times of the run's clock between two samples in which the generator did not stand still, nor in those before: what it
    sent in one burst then is answered and ended in bursts too. It stands still as well when its whole machine does."""
    spans, since, was_still = [], 0.0, False
    for sample in samples:
        is_still = sample.own_late_ms > STILL_MS
        if not (is_still or was_still):
            spans.append((since, sample.at))
        since, was_still = sample.at, is_still
    return spans


def within(series: Series, spans: Sequence[tuple[float, float]]) -> list[float]:
    """The delays (ms) that ended in one of the spans, which are in order."""
    ends = [end for _, end in spans]
    found = ((bisect_left(ends, at), at, ms) for at, ms in zip(series.at, series.ms, strict=True))
    return [ms for index, at, ms in found if index < len(spans) and spans[index][0] < at]


def report_of(ran: Ran) -> Report:
    """The figures in order; faults are calls that failed beyond what the mix allows, and what does not reconcile."""
    seen, mix = ran.seen, ran.mix
    report = Report(mix.name)
    placed = seen.placed.total()
    report.add("calls", "calls", placed)
    report.add("rate", "a second, while they began", placed / max(ran.arriving_s, 0.001))
    for (kind, status), count in sorted(seen.outcomes.items()):
        report.add(f"{kind}_{status}", f"{kind}, {status or 'no final response'}", count)
    report.add("failed", "ended otherwise than their kind says", seen.failed)
    report.add("repeats", "messages that the parties had to repeat", ran.repeats)
    report.add("accounts", "routers registered before", ran.accounts)
    report.add("registers", "REGISTERs meanwhile", seen.registers)
    report.add("register_refused", "of them refused with (0: not answered)", counted(seen.register_refused) or "none")
    for name, text in DELAYS.items():
        report.add_spread(name, text, seen.delays[name].ms, "ms")
    samples = [
        sample for sample in ran.samples if sample.at <= ran.seconds
    ]  # later ones are of what was owed when all was over
    steady = steady_spans(samples)
    report.add("steady_seconds", f"seconds in which the generator sent in time, of {len(samples)}", len(steady))
    for name in ADDED:
        report.add_spread(f"{name}_steady", f"{DELAYS[name]}, in those", within(seen.delays[name], steady), "ms")
    _add_cost(report, ran, placed)
    reasons = limits_of(ran)
    report.add("generator_limit", "the generator was the limit", "; ".join(reasons) or "no")
    report.add("slots_left", "slots left", ran.slots_left)
    report.add("without_record", "calls that the node had no time to look at", ran.without_record)
    report.add("reconciled", "records", str(ran.result))
    allowed = mix.load.failed_at_most
    report.expect(
        seen.failed <= allowed * placed + ran.result.cut,
        f"{seen.failed} of {placed} calls failed: {'; '.join(seen.failures[:3])}",
    )
    report.expect(not ran.interrupted, INTERRUPTED)
    report.expect(placed > 0, "no call was placed")
    report.expect(ran.slots_left == 0, f"{ran.slots_left} slots are left over")
    report.expect(ran.result.ok, str(ran.result))
    return report


def _add_cost(report: Report, ran: Ran, placed: int) -> None:
    seconds, calls = max(ran.seconds, 0.001), max(placed, 1)
    report.add("seconds", "took, with the ends of the last calls", ran.seconds, "s")
    report.add("cpu_s_per_1000", "CPU of the node for 1,000 calls", 1000 * ran.node_cpu_s / calls, "s")
    report.add("store_cpu_s_per_1000", "CPU of its store for 1,000 calls", 1000 * ran.store_cpu_s / calls, "s")
    report.add("own_cpu_s_per_1000", "CPU of the generator for 1,000 calls", 1000 * ran.own_cpu_s / calls, "s")
    report.add("cpu_share", "CPU of the node", 100 * ran.node_cpu_s / seconds, "% of a core")
    report.add("own_cpu_share", "CPU of the generator", 100 * ran.own_cpu_s / seconds, "% of a core")
    report.add("memory_before_bytes", "memory of the node before the first call", ran.memory_before, "bytes")
    report.add("memory_peak_bytes", "at most", ran.node_peak_bytes, "bytes")
    report.add("memory_after_bytes", "at the end", ran.memory_after, "bytes")
    late = max((sample.node_late_ms for sample in ran.samples), default=0.0)
    report.add("node_late_ms", "the node's event loop was late by less than", late, "ms")
    report.add("own_late_p99_ms", "the generator's was late by, p99", percentile(ran.own_late_ms, 0.99), "ms")
    report.add("own_late_max_ms", "at most", max(ran.own_late_ms, default=0.0), "ms")
    report.add("late_starts", "calls that began more than 10 ms late", ran.seen.late_starts)
    report.add("late_p99_ms", "calls began late by, p99", percentile(ran.seen.late.ms, 0.99), "ms")
    report.add("unstarted", "calls that could not begin: no free account", ran.seen.unstarted)
