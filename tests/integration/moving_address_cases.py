"""Run by test_moving_address.py in networks of their own: two hosts with a link that loses 5 % of what it carries, and an
address of the node's that goes from its end under live calls and comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Router, RouterAccount, next_call
from loadtest.network import DOMAIN, many_lines
from tests.networks import INSIDE, another_host, ip, rules

if TYPE_CHECKING:
    from loadtest.dialog import Call
    from loadtest.network import Network
    from tests.networks import Host

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_moving_address.py")
STAYS, MOVES = "198.51.100.1", "203.0.113.1"  # the node's, at its end of the link
AT_STAYS, AT_MOVES = "198.51.100.2", "203.0.113.2"  # customers', at the other
# Each 20th packet that arrives: as many as with 5 % at random, and never by chance none.
LOSS = """table inet loss {{ chain input {{
  type filter hook input priority 0; iifname "{device}" numgen inc mod 20 < 1 counter drop;
}}; }}
"""
FLOATS = "203.0.113.9"  # not there when the node starts
WAIT_S = 20.0
FIXED = "03023125001"
MORE = 4  # calls over the link while the address is away


def set_up_link(host: Host) -> None:
    for node, customer in ((STAYS, AT_STAYS), (MOVES, AT_MOVES)):
        ip("addr", "add", f"{node}/24", "dev", "node0")
        with host.entered():
            ip("addr", "add", f"{customer}/24", "dev", "customer0")
    rules("-f", "-", stdin=LOSS.format(device="node0"))
    with host.entered():
        rules("-f", "-", stdin=LOSS.format(device="customer0"))


async def router_at(network: Network, host: Host, user: str, address: str, node: str, *, tcp: bool = False) -> Router:
    """A customer's router on the other host, registered at one of the node's addresses."""
    account = RouterAccount(user, network.lines[user].password, DOMAIN)
    router = Router(user, network.ledger, account, (node, network.node.port), host=address, tcp=tcp)
    with host.entered():
        await router.open()
    network.routers.append(router)
    assert (await router.register(timeout_s=WAIT_S)).status == 200
    return router


async def talking(network: Network, router: Router, number: str = FIXED) -> tuple[Call, Call]:
    """Both sides of an answered call of the router's to the trunk, or the PSAP."""
    call = await (await router.call(number)).answered(WAIT_S)
    other = await next_call(network.psap if number == "112" else network.trunk, WAIT_S)
    await asyncio.wait_for(other.acked.wait(), WAIT_S)
    return call, other


async def test_calls_elsewhere_survive_an_address_that_goes_and_those_there_end_for_both(
    start_network: Callable[..., Any],
) -> None:
    ip("link", "set", "lo", "up")
    with another_host("node0", "customer0") as host:
        set_up_link(host)
        network: Network = await start_network(many_lines(5), addresses=(STAYS, MOVES))
        near = await network.router("u000000")
        stays = await router_at(network, host, "u000001", AT_STAYS, STAYS)
        ends, lasts = [await router_at(network, host, f"u00000{n}", AT_MOVES, MOVES) for n in (2, 3)]
        broken = await router_at(network, host, "u000004", AT_MOVES, MOVES, tcp=True)
        calls = {router.user: await talking(network, router) for router in (near, stays, ends, lasts, broken)}

        ip("addr", "del", f"{MOVES}/24", "dev", "node0")
        await network.followed(network.node, "sipproxy_listeners_away", 2.0, timeout_s=WAIT_S)
        for user in (ends.user, broken.user):
            await calls[user][1].hang_up()  # the carrier's side; the customer's hears nothing
            assert await network.slots(user, 0, timeout_s=WAIT_S) == 0
        for router, number in ((near, "112"), (stays, "112"), *((stays, FIXED) for _ in range(MORE))):
            call, _ = await talking(network, router, number)
            assert await call.hang_up() == 200
        assert not any(side.ended.is_set() for user in (near.user, stays.user, lasts.user) for side in calls[user])

        ip("addr", "add", f"{MOVES}/24", "dev", "node0")
        await network.followed(network.node, "sipproxy_listeners_away", 0.0, timeout_s=WAIT_S)
        assert await calls[ends.user][0].hang_up() in (200, 481), "its side is over too, by the answer to its own BYE"
        for router in (near, stays, lasts):
            call, other = calls[router.user]
            assert await call.hang_up() == 200
            await other.wait_ended(WAIT_S)
        assert (await ends.register(timeout_s=WAIT_S)).status == 200
        again, other = await talking(network, ends)
        assert await other.hang_up() == 200
        await again.wait_ended(WAIT_S)

        assert await network.slots_of_all(0) == 0
        records = {record.call_id: record for record in await network.records(8 + MORE)}
        assert len(records) == 8 + MORE
        for user, (call, _) in calls.items():
            record = records[call.call_id]
            by = "callee" if user in (ends.user, broken.user) else "caller"
            assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", by, True), user
        with host.entered():
            lost = rules("list", "table", "inet", "loss")
        assert "counter packets 0 " not in lost + rules("list", "table", "inet", "loss"), "the link loses what it carries"


async def test_a_node_starts_without_an_address_and_serves_there_when_it_comes(
    start_network: Callable[..., Any],
) -> None:
    ip("link", "set", "lo", "up")
    network: Network = await start_network(many_lines(2), addresses=(FLOATS,))
    await network.followed(network.node, "sipproxy_listeners_away", 2.0, timeout_s=WAIT_S)
    near = await network.router("u000000")
    for number in ("112", FIXED):
        call, _ = await talking(network, near, number)
        assert await call.hang_up() == 200
    ip("addr", "add", f"{FLOATS}/32", "dev", "lo")
    await network.followed(network.node, "sipproxy_listeners_away", 0.0, timeout_s=WAIT_S)
    account = RouterAccount("u000001", network.lines["u000001"].password, DOMAIN)
    for tcp in (False, True):
        there = Router(f"there-{tcp}", network.ledger, account, (FLOATS, network.node.port), tcp=tcp)
        await there.open()
        network.routers.append(there)
        assert (await there.register(timeout_s=WAIT_S)).status == 200
        call, _ = await talking(network, there)
        assert await call.hang_up() == 200
    changes = [line for line in network.node.log(tail=1_000_000).splitlines() if f"udp {FLOATS}" in line and '"change"' in line]
    assert ['"absent"' in line or '"opened"' in line for line in changes] == [True, True]
    ip("addr", "del", f"{FLOATS}/32", "dev", "lo")
