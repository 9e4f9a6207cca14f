"""Requests and responses from elsewhere against a real node: its sockets tell who speaks (design: invariant 6)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadtest.agents import Answering, next_call
from loadtest.node import LineSpec
from loadtest.reconcile import becomes
from sipproxy.sip.build import write_response

if TYPE_CHECKING:
    from loadtest.network import Network

LINES = [LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=2)]
ELSEWHERE = "127.0.0.77"


def asked_from(host: str, data: bytes, node: tuple[str, int]) -> int:
    """The status that the node answers with; 0 for silence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((host, 0))
        sender.settimeout(40.0)
        sender.sendto(data, node)
        return int(sender.recv(65_535).split()[1])


def say(host: str, data: bytes, node: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((host, 0))
        sender.sendto(data, node)


async def test_responses_from_elsewhere_with_all_that_the_trunk_knows_leave_the_call_as_it_was(
    start_network: Callable[..., Any],
) -> None:
    """Right branch, tags and CSeq, from a stranger and from another carrier's address; and then without the branch."""
    network: Network = await start_network(LINES)
    router = await network.router("b2001")
    network.trunk.answering = Answering(status=None)
    call = await router.call("03023125001")
    far = await next_call(network.trunk)
    assert far.server is not None
    invite, sent = far.server.request, 0
    for status in (180, 200, 302, 404, 486, 503, 603):
        headers = network.trunk.dialog_headers(invite)
        right = write_response(invite, status, to_tag=far.local_tag, headers=headers)
        branch = invite.via.branch or b""
        for data in (right, right.replace(branch, branch[:-2] + b"xx")):
            say(ELSEWHERE, data, network.node.address)
            sent += 1

    async def dropped() -> float:
        metrics = await network.node.metrics()
        named = ('sipproxy_responses_elsewhere_total{outcome="dropped"}', 'sipproxy_responses_dropped_total{reason="branch"}')
        return sum(metrics.get(name, 0.0) for name in named)

    assert await becomes(dropped, sent, timeout_s=20.0) == sent
    assert not call.outcome.done()
    assert [event.text for event in network.ledger.events if (event.party, event.what) == ("b2001", "got")] == ["100", "180"]
    far.answer()
    assert await call.final() == 200
    assert await call.hang_up() == 200
    await far.wait_ended()
    (record,) = await network.records(1)
    assert (record.status, record.end_reason, record.released_by) == (200, "normal", "caller")


async def test_requests_from_elsewhere_with_all_that_the_parties_know_leave_the_call_as_it_was(
    start_network: Callable[..., Any],
) -> None:
    network: Network = await start_network(LINES)
    router = await network.router("b2001")
    call = await (await router.call("03023125001")).answered()
    far = await next_call(network.trunk)
    for own in (call, far):
        routes = list(own.routes)
        for cookie in (False, True):
            own.routes = routes if cookie else []
            for method in (b"BYE", b"INVITE", b"UPDATE", b"INFO"):
                data = own.write(method, cseq=own.cseq + 1)
                status = await asyncio.to_thread(asked_from, ELSEWHERE, data, network.node.address)
                assert status == (407 if cookie and own is call else 481), (method, cookie)
        own.routes = routes
    assert not call.ended.is_set()
    assert not far.ended.is_set()
    assert await network.slots("b2001", 1) == 1
    assert await call.hang_up() == 200
    await far.wait_ended()
    (record,) = await network.records(1)
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", "caller", True)
    _, result = await network.reconciled()
    assert result.ok, result
