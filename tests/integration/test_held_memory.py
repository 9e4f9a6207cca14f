"""`python -m loadtest memory`: what a node holds, in a short form; its figures need more calls and longer pauses."""

from __future__ import annotations

import pytest

from loadtest import memory, parties
from loadtest.memory import KIB, Held, Plan, hold, report_of
from loadtest.network import many_lines


async def test_registrations_and_calls_are_held_and_all_of_them_succeed() -> None:
    plan, told = Plan(lines=20, calls=8, together=4, pause_s=0.5, kamailio=False), list[str]()
    [found] = await hold(plan, told.append)
    report = report_of(plan, found)
    assert report.ok, report.faults
    assert next(text for text in told if "1 of" in text) == "node: registrations, 1 of 20"
    assert {"node: registrations, 20 of 20", "node: calls, 4 of 4", "node: hanging up, 8 of 8"} <= set(told)
    assert all(size > KIB * KIB for size in (found.idle, found.registering, *found.registered, *found.live))


async def test_calls_that_end_come_from_so_many_lines_that_none_calls_too_often_however_few_are_held() -> None:
    """One line may start some tens of calls a minute (line.rate)."""
    [found] = await hold(Plan(lines=1, calls=1, together=4, pause_s=6.0, kamailio=False), lambda _: None)
    assert found.failed == 0


async def test_calls_that_the_node_has_no_room_for_have_failed_and_the_others_are_hung_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parties, "REPEAT_S", 0.2)
    monkeypatch.setattr(memory, "SETTINGS", {**memory.SETTINGS, "limits": {**memory.SETTINGS["limits"], "calls": 6}})
    lines, told = many_lines(4, channels=memory.CHANNELS), list[str]()
    async with memory._node(lines) as node:
        run = memory._Run(node, Plan(lines=4, calls=8, together=1, pause_s=0.1), told.append)
        await run.all("registrations", [node.parties.call(line, n) for n, line in enumerate(lines)], memory.REGISTER_STEPS)
        assert run.found.failed == 0
        await run.live(lines)
    assert run.found.failed == 2
    assert told[-1] == "node: hanging up, 6 of 6"


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
