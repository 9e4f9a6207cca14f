"""Which transport and which hosts NAPTR and SRV records lead to (RFC 3263 §4.1, RFC 3403), from dnsmasq on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.dns import NameServer
from sipproxy.net.resolver import MAX_ADDRESSES, Resolver
from sipproxy.net.transports import Transports
from sipproxy.sip.flow import Hop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sipproxy.sip.places import Place

pytestmark = pytest.mark.program("dnsmasq")

EVERY = {"UDP", "TCP", "TLS"}
ZONE = """
naptr-record=carrier.test,50,50,s,SIPS+D2T,,_sips._tcp.carrier.test
naptr-record=carrier.test,60,20,S,sip+d2t,,_sip._tcp.carrier.test
naptr-record=carrier.test,60,10,s,SIP+D2U,,_sip._udp.carrier.test
naptr-record=carrier.test,10,10,u,E2U+sip,!^.*$!sip:x@carrier.test!,.
naptr-record=carrier.test,20,10,s,SIP+D2S,,_sip._sctp.carrier.test
srv-host=_sips._tcp.carrier.test,a.carrier.test,5443,1,0
srv-host=_sip._tcp.carrier.test,a.carrier.test,5070,1,0
srv-host=_sip._udp.carrier.test,b.carrier.test,5080,20,0
srv-host=_sip._udp.carrier.test,a.carrier.test,5080,10,0
host-record=a.carrier.test,192.0.2.1,2001:db8::1
host-record=b.carrier.test,192.0.2.2
naptr-record=nowhere.test,10,10,s,SIP+D2T,,_sip._tcp.missing.test
srv-host=_sip._udp.nowhere.test,b.carrier.test,5090,1,0
naptr-record=regexp.test,10,10,s,SIP+D2T,!x!y!,_sip._tcp.carrier.test
naptr-record=terminal.test,10,10,a,SIP+D2T,,a.carrier.test
srv-host=_sip._tcp.onlytcp.test,b.carrier.test,5091,1,0
host-record=onlytcp.test,192.0.2.9
host-record=plain.test,192.0.2.3
"""


@contextlib.asynccontextmanager
async def named(directory: Path, zone: str = ZONE) -> AsyncIterator[tuple[NameServer, Resolver]]:
    async with NameServer(directory, zone) as server:
        resolver = Resolver(nameservers=[server.address], hosts_file=None, timeout_s=5.0, min_ttl_s=1.0, rng=random.Random(1))
        try:
            yield server, resolver
        finally:
            await resolver.close()


def shown(places: list[Place]) -> list[tuple[str, str, int]]:
    return [place[:3] for place in places]


@pytest.mark.parametrize(
    ("host", "port", "transport", "among", "expected"),
    [
        ("carrier.test", 0, "UDP", EVERY, [("TLS", "192.0.2.1", 5443), ("TLS", "2001:db8::1", 5443)]),
        (
            "carrier.test", 0, "UDP", {"UDP", "TCP"},
            [("UDP", "192.0.2.1", 5080), ("UDP", "2001:db8::1", 5080), ("UDP", "192.0.2.2", 5080),
             ("TCP", "192.0.2.1", 5070), ("TCP", "2001:db8::1", 5070)],
        ),
        ("carrier.test", 0, "TCP", {"TCP"}, [("TCP", "192.0.2.1", 5070), ("TCP", "2001:db8::1", 5070)]),
        ("carrier.test", 0, "TLS", {"TLS"}, [("TLS", "192.0.2.1", 5443), ("TLS", "2001:db8::1", 5443)]),
        ("carrier.test", 0, "TCP", (), [("TCP", "192.0.2.1", 5070), ("TCP", "2001:db8::1", 5070)]),
        ("a.carrier.test", 5099, "UDP", EVERY, [("UDP", "192.0.2.1", 5099), ("UDP", "2001:db8::1", 5099)]),
        ("nowhere.test", 0, "UDP", EVERY, [("UDP", "192.0.2.2", 5090)]),
        ("regexp.test", 0, "UDP", EVERY, []),
        ("terminal.test", 0, "UDP", EVERY, []),
        ("onlytcp.test", 0, "UDP", {"UDP", "TCP"}, [("TCP", "192.0.2.2", 5091)]),
        ("onlytcp.test", 0, "UDP", {"UDP"}, [("UDP", "192.0.2.9", 5060)]),
        ("plain.test", 0, "UDP", EVERY, [("UDP", "192.0.2.3", 5060)]),
        ("plain.test", 0, "TLS", {"TLS"}, [("TLS", "192.0.2.3", 5061)]),
        ("unknown.test", 0, "UDP", EVERY, []),
    ],
)  # fmt: skip
async def test_records_lead_where_rfc_3263_says(
    tmp_path: Path, host: str, port: int, transport: str, among: Any, expected: list[tuple[str, str, int]]
) -> None:
    async with named(tmp_path) as (_, resolver):
        assert shown(await resolver.resolve(host, port, transport, among=among)) == expected


async def test_a_place_says_by_which_records_it_was_found(tmp_path: Path) -> None:
    async with named(tmp_path) as (_, resolver):
        (first, *_) = await resolver.resolve("carrier.test", 0, "UDP", among=EVERY)
        assert first.record == "NAPTR carrier.test, SRV _sips._tcp.carrier.test, A a.carrier.test"
        (only,) = await resolver.resolve("plain.test", 0, "UDP", among=EVERY)
        assert only.record == "A plain.test"


async def test_records_whose_time_is_over_are_asked_for_anew(tmp_path: Path) -> None:
    async with named(tmp_path, "local-ttl=1\nhost-record=moving.test,192.0.2.1\n") as (server, resolver):
        assert shown(await resolver.resolve("moving.test", 5060, "UDP")) == [("UDP", "192.0.2.1", 5060)]
        await server.serve("local-ttl=1\nhost-record=moving.test,192.0.2.2\n")

        found: list[tuple[str, str, int]] = []
        async with asyncio.timeout(20):
            while found != [("UDP", "192.0.2.2", 5060)]:
                found = shown(await resolver.resolve("moving.test", 5060, "UDP"))
                await asyncio.sleep(0.1)


async def test_a_name_server_that_is_gone_leaves_the_last_answer_and_holds_up_nobody(tmp_path: Path) -> None:
    async with named(tmp_path, "local-ttl=1\n" + ZONE) as (server, resolver):
        assert await resolver.resolve("carrier.test", 0, "UDP", among=EVERY)
        await server.stop()
        failed: list[object] = []
        transports = Transports(resolver, lambda *_: None, failed.append, lambda *_: None, lambda *_: None)
        transports.bind([("UDP", "127.0.0.1", 0)])
        await transports.start()
        loop = asyncio.get_running_loop()
        endpoint, peer = await loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
        port = endpoint.get_extra_info("sockname")[1]
        transports.send(Hop("UDP", "nobody-knows.test", port), b"OPTIONS sip:a SIP/2.0\r\n\r\n", "named")
        transports.send(Hop("UDP", "127.0.0.1", port), b"OPTIONS sip:b SIP/2.0\r\n\r\n", "literal")
        await until(lambda: peer.got)
        assert failed == [], "what goes to an address does not wait for the look-up of a name"
        await until(lambda: failed == ["named"])
        await asyncio.sleep(1.1)  # past the records' time
        assert shown(await resolver.resolve("carrier.test", 0, "UDP", among=EVERY))[0] == ("TLS", "192.0.2.1", 5443)
        endpoint.close()
        await transports.close()


async def test_a_name_with_very_many_addresses_is_used_up_to_a_bound(tmp_path: Path) -> None:
    zone = "".join(f"srv-host=_sip._udp.many.test,m{n}.many.test,5060,{n},0\n" for n in range(12))
    zone += "".join(f"host-record=m{n}.many.test,192.0.2.{16 * n + k}\n" for n in range(12) for k in range(4))
    async with named(tmp_path, zone) as (_, resolver):
        found = await resolver.resolve("many.test", 0, "UDP", among=EVERY)
        assert len(found) == MAX_ADDRESSES
        assert [place.rank for place in found] == [n for n in range(8) for _ in range(4)]


async def until(condition: Callable[[], object], seconds: float = 40.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.01)


class Peer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.append(data)
