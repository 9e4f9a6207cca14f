"""Two real nodes that reach each other over TLS: whose certificate is believed, and a router's TLS flow behind the other."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from loadtest.agents import next_call
from loadtest.network import Network, many_lines
from loadtest.reconcile import becomes
from loadtest.ua import SDP_TYPE, sdp_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from loadtest.agents import Router
    from loadtest.node import Node

BOUND_S = 20.0
USER = "u000000"
HERE = "127.0.0.1"


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ca, self._folder, self._count = trustme.CA(), folder, 0
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str) -> Path:
        self._count += 1
        path = self._folder / f"{self._count}.pem"
        self._ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@contextlib.asynccontextmanager
async def pair(
    start_network: Callable[..., Any], authority: Authority, owner: Path, holder: Path
) -> AsyncIterator[tuple[Network, Node, Router]]:
    """A network whose first node owns the trunk's calls, and the node at which the router is registered over TLS."""
    settings = {"tls": {"ca": str(authority.file), "clients": "optional"}}
    transports = ("tls", "udp")  # the nodes reach each other by the first that both have
    network: Network = await start_network(many_lines(2), settings=settings, certificate=owner, transports=transports)
    async with network.another_node(certificate=holder) as other:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = (
            False,
            ssl.CERT_NONE,
        )  # whose certificate a node has is not the router's test
        router = await network.router(USER, node=other, tls=context)
        for node in (network.node, other):
            await network.followed(node, "sipproxy_nodes", 2)
        await network.followed(network.node, "sipproxy_registrations_elsewhere", 1)
        yield network, other, router


async def test_call_to_a_router_over_tls_at_the_other_node_goes_from_node_to_node_over_tls(
    start_network: Callable[..., Any], authority: Authority
) -> None:
    certificates = authority.issue(HERE), authority.issue(HERE)
    async with pair(start_network, authority, *certificates) as (network, other, router):
        call = await network.trunk.call(network.lines[USER].number, network.node.address)
        await call.answered(BOUND_S)
        rung = await next_call(router)
        [invite] = [data for way, _, data in router.wire if way == "<" and data.startswith(b"INVITE ")]
        assert invite.count(b"Via: SIP/2.0/TLS ") == 2, "from the owner to the other node, and from there to the router"
        for party in (call, rung):  # requests of both sides pass between the nodes
            response = await party.request(b"INVITE", [(b"Contact", party.agent.contact), SDP_TYPE], sdp_of(party.agent.host))
            assert response.status == 200
            party.agent.send(party.write(b"ACK", cseq=party.cseq), party.next_hop)
        assert await rung.hang_up() == 200
        [record] = await network.records(1)
        assert (record.status, record.end_reason, record.released_by) == (200, "normal", "callee")

        async def went() -> bool:  # metrics are taken now and then
            return (await other.metrics()).get('sipproxy_edge_requests_total{direction="from_customer"}', 0) >= 2

        assert await becomes(went, True, timeout_s=BOUND_S)
        assert not any("edge_refused" in name and value for name, value in (await other.metrics()).items())
        assert await network.slots(USER, 0) == 0


@pytest.mark.parametrize("who", ["owner", "holder"])
@pytest.mark.parametrize("how", ["another authority", "another name"])
async def test_node_with_a_foreign_certificate_is_not_believed_and_help_is_reached_all_the_same(
    start_network: Callable[..., Any], authority: Authority, tmp_path: Path, who: str, how: str
) -> None:
    """Neither does it get a customer's call, nor can it bring one; both nodes have the same address here."""
    bad = Authority(tmp_path / "theirs").issue(HERE) if how == "another authority" else authority.issue("elsewhere.example")
    good = authority.issue(HERE)
    certificates = (bad, good) if who == "owner" else (good, bad)
    async with pair(start_network, authority, *certificates) as (network, _, router):
        call = await network.trunk.call(network.lines[USER].number, network.node.address)
        assert await call.final(BOUND_S) == 480
        assert not [data for way, _, data in router.wire if way == "<" and data.startswith(b"INVITE ")]
        assert await network.slots(USER, 0) == 0
        help_ = await (await router.call("112")).answered(BOUND_S)
        assert await help_.hang_up() == 200
