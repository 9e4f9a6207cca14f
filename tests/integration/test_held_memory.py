"""`python -m loadtest memory`: what a node holds, in a short form; its figures need more calls and longer pauses."""

from __future__ import annotations

import pytest

from loadtest.memory import KIB, Held, Plan, hold, report_of


async def test_registrations_and_calls_are_held_and_all_of_them_succeed() -> None:
    plan, told = Plan(lines=20, calls=8, together=4, pause_s=0.5, kamailio=False), list[str]()
    [found] = await hold(plan, told.append)
    report = report_of(plan, found)
    assert report.ok, report.faults
    assert next(text for text in told if "1 of" in text) == "node: registrations, 1 of 20"
    assert {"node: registrations, 20 of 20", "node: calls, 4 of 4", "node: hanging up, 8 of 8"} <= set(told)
    assert all(size > KIB * KIB for size in (found.idle, found.registering, *found.registered, *found.live))


def test_report_tells_what_stays_and_what_passes_apart() -> None:
    plan, kb = Plan(lines=1000, calls=100), 1000
    found = Held("node", idle=1000 * kb, registering=2800 * kb, begun=400, registered=[2500 * kb, 3500 * kb])
    found.live, found.ended_bytes = [4000 * kb, 4300 * kb], 7.0
    figures = report_of(plan, found).as_dict()
    assert figures["registration_bytes"] == 1000.0, "of the second half, which uses the first one's transactions again"
    assert figures["register_transaction_bytes"] == 2000.0, "of the 400 that had not been forgotten"
    assert figures["live_call_bytes"] == 6000.0
    assert figures["ended_call_bytes"] == 7.0
    assert figures["peak_kib"] == pytest.approx(4300 * kb / KIB, abs=0.001)
    found.failed = 1
    assert not report_of(plan, found).ok
