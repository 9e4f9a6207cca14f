"""Whole calls through a real node, seen from both parties, the store and the records (RFC 3261 §13, §15, §16)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from loadtest.agents import Answering, next_call
from loadtest.node import LineSpec
from loadtest.reconcile import wait_until
from loadtest.ua import SDP_TYPE, CallError, sdp_of

if TYPE_CHECKING:
    from loadtest.network import Network

LINES = [
    LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=2),
    LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert"),
    LineSpec("V1001", "v1002", "secret-w", "+492051555102", "velbert", "02051", "velbert"),
]
FIXED = "03023125001"


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    network: Network = await start_network(LINES)
    return network


async def test_call_to_the_trunk_leaves_with_the_asserted_number_and_returns_an_answer(network: Network) -> None:
    router = await network.router("b2001")
    call = await (await router.call(FIXED)).answered()
    at_trunk = await next_call(network.trunk)
    assert at_trunk.server is not None
    invite = at_trunk.server.request
    assert invite.call_id.decode() == call.call_id
    assert b"+49603255501" in (invite.first(b"p-asserted-identity") or b"")
    assert not invite.has(b"proxy-authorization")
    assert await network.slots("b2001", 1) == 1
    assert await call.hang_up() == 200
    await at_trunk.wait_ended()
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].calling, records[0].canonical) == ("+49603255501", "+493023125001")
    assert await network.slots("b2001", 0) == 0


async def test_call_ended_by_the_callee_is_released_by_the_callee(network: Network) -> None:
    router = await network.router("b2001")
    network.trunk.answering = Answering(talk_s=0.2)
    call = await (await router.call(FIXED)).answered()
    await call.wait_ended()
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].released_by, records[0].end_reason) == ("callee", "normal")


@pytest.mark.parametrize("status", [404, 486, 603])
async def test_call_refused_downstream_returns_the_status_and_frees_the_slot(network: Network, status: int) -> None:
    router = await network.router("b2001")
    network.trunk.answering = Answering(ring_s=0.1, status=status)
    call = await router.call(FIXED)
    with pytest.raises(CallError) as caught:
        await call.answered()
    assert caught.value.status == status
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].end_reason, records[0].billable_ms) == ("rejected", 0)
    assert await network.slots("b2001", 0) == 0


async def test_call_cancelled_while_ringing_ends_both_sides_and_frees_the_slot(network: Network) -> None:
    router = await network.router("b2001")
    network.trunk.answering = Answering(status=None)
    call = await router.call(FIXED)
    at_trunk = await next_call(network.trunk)
    assert await wait_until(lambda: call.truth.ringing_at is not None)
    call.cancel()
    assert await call.final() == 487
    await at_trunk.wait_ended()
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].end_reason, records[0].released_by) == ("cancelled", "caller")
    assert await network.slots("b2001", 0) == 0


async def test_reinvite_is_no_other_call(network: Network) -> None:
    router = await network.router("b2001")
    call = await (await router.call(FIXED)).answered()
    assert await network.slots("b2001", 1) == 1
    client = router.begin(call.write(b"INVITE", [SDP_TYPE], sdp_of(router.host)), call.next_hop)
    async with asyncio.timeout(30):
        while (response := await client.responses.get()).status < 200:
            pass
    assert response.status == 200
    router.send(call.write(b"ACK", cseq=call.cseq), call.next_hop)
    assert await network.slots("b2001", 1) == 1
    assert await call.hang_up() == 200
    _, result = await network.reconciled()
    assert result.ok, result


async def test_incoming_call_rings_is_answered_and_ended_by_the_caller(network: Network) -> None:
    router = await network.router("v1001")
    router.answering = Answering(ring_s=0.2)
    call = await network.trunk.call("+492051555101", network.node.address)
    at_router = await next_call(router)
    await call.answered()
    assert call.truth.ringing_at is not None
    assert await network.slots("v1001", 1) == 1
    assert await call.hang_up() == 200
    await at_router.wait_ended()
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].direction, records[0].line, records[0].account) == ("incoming", "V1001", "v1001")


async def test_incoming_call_to_a_router_that_is_not_registered_fails_with_480(network: Network) -> None:
    call = await network.trunk.call("+492051555101", network.node.address)
    assert await call.final() == 480
    records, result = await network.reconciled()
    assert result.ok, result
    assert records[0].end_reason == "unreachable"
    assert await network.slots("v1001", 0) == 0


async def test_incoming_call_to_a_number_of_nobody_fails_with_404(network: Network) -> None:
    call = await network.trunk.call("+492051999999", network.node.address)
    assert await call.final() == 404
    _, result = await network.reconciled()
    assert result.ok, result


async def test_incoming_call_rings_every_contact_and_the_first_answer_wins(network: Network) -> None:
    """RFC 3261 §16.6, §16.7: parallel forking to both contacts of the account; the other branch is cancelled."""
    quick, slow = await network.router("v1001"), await network.router("v1001")
    quick.answering, slow.answering = Answering(ring_s=0.3), Answering(status=None)
    call = await (await network.trunk.call("+492051555101", network.node.address)).answered()
    loser = await next_call(slow)
    await loser.wait_ended()
    assert loser.truth.status == 487
    assert await network.slots("v1001", 1) == 1
    assert await call.hang_up() == 200
    _, result = await network.reconciled()
    assert result.ok, result


async def test_call_between_two_lines_stays_on_net_and_uses_a_channel_of_each(network: Network) -> None:
    caller, callee = await network.router("b2001"), await network.router("v1002")
    call = await (await caller.call("02051555102")).answered()
    await next_call(callee)
    assert "INVITE" not in network.trunk.received
    assert (await network.slots("b2001", 1), await network.slots("v1002", 1)) == (1, 1)
    assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].direction, records[0].line, records[0].callee_line) == ("internal", "B2001", "V1001")
    assert (await network.slots("b2001", 0), await network.slots("v1002", 0)) == (0, 0)


async def test_call_without_a_registration_is_proven_by_digest(network: Network) -> None:
    router = await network.router("b2001", register=False)
    call = await (await router.call(FIXED)).answered()
    assert call.truth.challenged == 1
    assert await call.hang_up() == 200


async def test_call_with_a_wrong_password_is_never_forwarded_and_leaves_no_slot(network: Network) -> None:
    network.lines["b2001"] = LineSpec("B2001", "b2001", "not-it", "+49603255501")
    router = await network.router("b2001", register=False)
    call = await router.call(FIXED)
    assert await call.final() == 407
    assert "INVITE" not in network.trunk.received
    assert await network.slots("b2001", 0) == 0


async def test_invite_sent_twice_is_one_call(network: Network) -> None:
    """A retransmission is absorbed by the server transaction: one INVITE at the trunk, one slot, one record."""
    router = await network.router("b2001")
    network.trunk.answering = Answering(ring_s=0.5)
    call = await router.call(FIXED)
    await next_call(network.trunk)
    assert call.client is not None
    for _ in range(3):
        router.send(call.client.request.raw, network.node.address)
    await call.answered()
    assert network.trunk.received["INVITE"] == 1
    assert await network.slots("b2001", 1) == 1
    assert await call.hang_up() == 200
    _, result = await network.reconciled()
    assert result.ok, result
