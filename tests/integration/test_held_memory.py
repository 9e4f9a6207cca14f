"""`python -m loadtest memory`: what a node holds, in a short form; its figures need more calls and longer pauses."""

from __future__ import annotations

import shutil

import pytest

from loadtest.memory import Held, Plan, hold, report_of


@pytest.mark.skipif(shutil.which("sipp") is None, reason="needs SIPp (Debian: sip-tester)")
async def test_registrations_and_calls_are_held_and_all_of_them_succeed() -> None:
    plan, told = Plan(lines=20, calls=10, register_rate=20, call_rate=5, pause_s=0.5), list[str]()
    found = await hold(plan, told.append)
    report = report_of(plan, found)
    assert report.ok, report.faults
    assert told == ["20 registrations", "20 registrations", "calls that end", "10 calls that are held", "hanging up"]
    assert 0 < found.idle <= found.peak


def test_report_divides_by_what_is_held_at_once() -> None:
    plan = Plan(lines=1000, calls=100, register_rate=10, call_rate=2, pause_s=36)
    found = Held(idle=1024, registered=[1_320_000, 1_000_000], ended=640, live=50_000, peak=2048)
    figures = report_of(plan, found).as_dict()
    assert figures["registration_bytes"] == 1000.0
    assert figures["register_transaction_bytes"] == 1000.0  # 320 of them are younger than 32 s
    assert figures["ended_call_bytes"] == 10.0  # 64 of the 72
    assert figures["live_call_bytes"] == 500.0
    found.failed = 1
    assert not report_of(plan, found).ok
