"""kill -9 of the node while calls live, and a restart: invariants 2 and 3 of the design."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadtest.network import APART_MS, many_lines
from loadtest.outages import kill_during_calls
from loadtest.reconcile import wait_until
from loadtest.ua import NoAnswerError

if TYPE_CHECKING:
    from loadtest.network import Network

CALLS = 50
LEASE_S = 6
SETTINGS = {"store": {"lease_s": LEASE_S, "refresh_s": 2}}


async def test_node_killed_during_calls_goes_on_with_those_that_live(start_network: Callable[..., Any]) -> None:
    """Issue of restarts: no slot leaked, no dialog broken, one record for each call, and none longer than its call was."""
    network: Network = await start_network(many_lines(CALLS // 2), settings=SETTINGS)
    routers = [await network.router(user) for user in network.lines]
    report = await kill_during_calls(network, routers, CALLS, away_s=1.0)
    assert (report.live, report.left, report.slots_at_kill) == (CALLS, CALLS // 2, CALLS)
    assert report.slots_right == CALLS - report.left
    assert report.broken == []
    assert report.slots_left == 0
    assert report.bindings_before == report.bindings_after == len(routers)
    assert report.reached == 5, "incoming calls after the restart, without another REGISTER"
    assert report.result.ok, report.result
    placed = network.ledger.placed()
    for record in report.records[:CALLS]:
        truth = placed[record.call_id]
        assert (record.end_reason, record.status, record.released_by) == ("normal", 200, truth.released_by)
        assert truth.talk_ms is not None
        assert record.billable_ms <= truth.talk_ms + APART_MS, "an uncertain end is never later than the true one"


async def test_node_killed_while_a_call_rings_leaves_one_record(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(1), settings=SETTINGS)
    router = await network.router("u000000")
    network.trunk.answering = type(network.trunk.answering)(status=None)
    call = await router.call("03023125001")
    assert await network.slots("u000000", 1) == 1
    assert await wait_until(lambda: call.truth.ringing_at is not None)
    await network.node.kill()
    await network.node.start()
    records = await network.records(1)
    assert [(r.call_id, r.end_reason, r.duration_certain, r.billable_ms) for r in records] == [
        (call.call_id, "node_restart", False, 0)
    ]
    assert records[0].answer_at_ms is None
    assert await network.slots("u000000", 0, timeout_s=30) == 0


async def test_node_killed_between_calls_numbers_its_records_without_a_gap(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(1, channels=5), settings=SETTINGS)
    router = await network.router("u000000")
    for _ in range(3):
        call = await (await router.call("03023125001")).answered()
        await call.hang_up()
        await network.node.kill()
        await network.node.start()
    records, result = await network.reconciled()
    assert result.ok, result
    assert [record.seq for record in records] == [1, 2, 3]
    assert {record.end_reason for record in records} == {"normal"}


async def test_node_stopped_and_started_keeps_its_registrations(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(2), settings=SETTINGS)
    stays, vanishes = await network.router("u000000"), await network.router("u000001")
    assert await network.node.stop() == 0
    await network.node.start()
    call = await network.trunk.call(network.lines["u000000"].number, network.node.address)
    await call.answered()
    assert stays.incoming.get_nowait().call_id == call.call_id
    await call.hang_up()
    vanishes.vanish()
    ringing = await network.trunk.call(network.lines["u000001"].number, network.node.address)
    try:
        status = await ringing.final(1)
    except NoAnswerError:
        status = 0
    assert status == 0, "its binding is known, so that the node tries to reach it"
    ringing.cancel()
