"""Locating SIP servers against a real name server on loopback, on both event loops (RFC 3263 §4.2, RFC 2782, RFC 8767)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
import pytest_asyncio
from waiting import until

from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import AHEAD_S, Transports
from sipproxy.sip.flow import Hop
from sipproxy.sip.places import Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ZONE: dict[tuple[str, str], tuple[int, list[str]]] = {
    ("a.example", "A"): (60, ["192.0.2.1"]),
    ("both.example", "A"): (60, ["192.0.2.2", "192.0.2.3"]),
    ("both.example", "AAAA"): (60, ["2001:db8::2"]),
    ("short.example", "A"): (1, ["192.0.2.9"]),
    ("_sip._udp.srv.example", "SRV"): (60, ["10 0 5070 a.example.", "20 0 5080 both.example."]),
    ("_sip._tcp.srv.example", "SRV"): (60, ["10 0 5090 a.example."]),
    ("_sips._tcp.srv.example", "SRV"): (60, ["10 0 5443 a.example."]),
    ("_sip._udp.gone.example", "SRV"): (60, ["0 0 0 ."]),
    ("gone.example", "A"): (60, ["192.0.2.66"]),
    ("_sip._udp.half.example", "SRV"): (60, ["10 0 5070 missing.example.", "20 0 5071 a.example."]),
    ("_sip._udp.weighted.example", "SRV"): (60, ["10 75 1 a.example.", "10 25 2 a.example.", "10 0 3 a.example."]),
    ("alias.example", "CNAME"): (60, ["a.example."]),
}


class NameServer(asyncio.DatagramProtocol):
    """Answers from ZONE; silent or failing, for all or for one record type, as a test tells it."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.silent: set[str] = set()  # record types, "*" for all
        self.failing: set[str] = set()
        self.changed: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.lose = 0  # so many queries are not answered

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.port = int(transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if self.lose or self.silent & {kind, "*"}:
            self.lose -= bool(self.lose)
            return
        self.transport.sendto(self._answer(query, name, kind).to_wire(), addr)

    def _answer(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        zone = {**ZONE, **self.changed}
        if self.failing & {kind, "*"}:
            answer.set_rcode(dns.rcode.SERVFAIL)
            return answer
        if (name, "CNAME") in zone:
            ttl, values = zone[name, "CNAME"]
            answer.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", "CNAME", *values))
            name = values[0].removesuffix(".")
        if (name, kind) in zone:
            ttl, values = zone[name, kind]
            answer.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", kind, *values))
        elif not any(known == name for known, _ in zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


class Finder(Resolver):
    """A resolver that tells addresses and ports alone."""

    async def find(self, host: str, port: int, transport: str) -> list[tuple[str, int]]:
        return [(place.host, place.port) for place in await self.resolve(host, port, transport)]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    yield protocol
    transport.close()


@pytest_asyncio.fixture
async def make(server: NameServer) -> AsyncIterator[Callable[..., Finder]]:
    made: list[Finder] = []

    def resolver(**options: Any) -> Finder:
        defaults = {"nameservers": [("127.0.0.1", server.port)], "hosts_file": None, "timeout_s": 60.0}
        made.append(Finder(**{**defaults, **options}))
        return made[-1]

    yield resolver
    await asyncio.gather(*(resolver.close() for resolver in made))


@pytest.mark.parametrize(
    ("host", "port", "transport", "expected"),
    [
        ("192.0.2.1", 0, "UDP", ("192.0.2.1", 5060)),
        ("192.0.2.1", 5070, "UDP", ("192.0.2.1", 5070)),
        ("192.0.2.1", 0, "TLS", ("192.0.2.1", 5061)),
        ("2001:db8::1", 0, "TCP", ("2001:db8::1", 5060)),
        ("[2001:db8::1]", 5062, "TCP", ("2001:db8::1", 5062)),
        ("a.example", 0, "UDP", None),
        ("192.0.2", 0, "UDP", None),
        ("192.0.2.01", 0, "UDP", None),
        ("", 0, "UDP", None),
    ],
)
def test_resolver_literal_is_known_at_once(host: str, port: int, transport: str, expected: tuple[str, int] | None) -> None:
    place = Resolver.literal(host, port, transport)
    assert place == (Place(transport, *expected, "address") if expected is not None else None)


async def test_resolver_literal_asks_nobody(server: NameServer, make: Callable[..., Finder]) -> None:
    assert await make().find("192.0.2.7", 0, "UDP") == [("192.0.2.7", 5060)]
    assert not server.asked


@pytest.mark.parametrize(
    ("host", "port", "transport", "expected"),
    [
        ("a.example", 5070, "UDP", [("192.0.2.1", 5070)]),
        ("srv.example", 5099, "UDP", []),  # a port in the URI: no SRV (RFC 3263 §4.2), and there is no address
        ("A.Example.", 0, "UDP", [("192.0.2.1", 5060)]),
        ("a.example", 0, "TLS", [("192.0.2.1", 5061)]),
        ("alias.example", 0, "TCP", [("192.0.2.1", 5060)]),
        ("both.example", 0, "UDP", [("192.0.2.2", 5060), ("192.0.2.3", 5060), ("2001:db8::2", 5060)]),
        ("srv.example", 0, "UDP", [("192.0.2.1", 5070), ("192.0.2.2", 5080), ("192.0.2.3", 5080), ("2001:db8::2", 5080)]),
        ("srv.example", 0, "TCP", [("192.0.2.1", 5090)]),
        ("srv.example", 0, "TLS", [("192.0.2.1", 5443)]),
        ("gone.example", 0, "UDP", []),  # SRV target ".": decidedly no service, whatever the address (RFC 2782)
        ("half.example", 0, "UDP", [("192.0.2.1", 5071)]),
        ("missing.example", 0, "UDP", []),
    ],
)
async def test_resolver_finds_what_rfc_3263_says(
    make: Callable[..., Finder], host: str, port: int, transport: str, expected: list[tuple[str, int]]
) -> None:
    found = await make().find(host, port, transport)
    groups = groupby(found, key=lambda address: (address[1], ":" in address[0]))  # a server rotates equal records
    assert [address for _, group in groups for address in sorted(group)] == expected


async def test_resolver_families_choose_and_order_addresses(make: Callable[..., Finder]) -> None:
    assert (await make(families=(6, 4)).find("both.example", 1, "UDP"))[0] == ("2001:db8::2", 1)
    assert await make(families=(6,)).find("both.example", 1, "UDP") == [("2001:db8::2", 1)]


@pytest.mark.parametrize(
    ("host", "reason"), [("missing.example", "nxdomain"), ("gone.example", "no_service"), ("bad name", "bad_name")]
)
async def test_resolver_failure_is_counted_under_its_reason(make: Callable[..., Finder], host: str, reason: str) -> None:
    resolver = make()
    assert await resolver.find(host, 0, "UDP") == []
    assert {name: count for name, count in resolver.failures.items() if count} == {reason: 1}


@pytest.mark.parametrize("host", ["", ".", "a..b", "x" * 64 + ".example", "a." * 130, "bücher.example", "a b", "a/b", "\x00"])
async def test_resolver_name_that_cannot_be_one_is_not_asked_for(
    server: NameServer, make: Callable[..., Finder], host: str
) -> None:
    assert await make().find(host, 0, "UDP") == []
    assert not server.asked


async def test_resolver_weights_share_the_first_place_in_proportion(make: Callable[..., Finder]) -> None:
    resolver = make(rng=random.Random(1))
    firsts = Counter([(await resolver.find("weighted.example", 0, "UDP"))[0][1] for _ in range(1000)])
    assert 690 < firsts[1] < 800
    assert 180 < firsts[2] < 300
    assert firsts[3] < 30
    assert {port for _, port in await resolver.find("weighted.example", 0, "UDP")} == {1, 2, 3}


async def test_resolver_answer_is_kept_for_its_ttl(server: NameServer, make: Callable[..., Finder]) -> None:
    clock = Clock()
    resolver = make(clock=clock, families=(4,))
    for _ in range(3):
        await resolver.find("a.example", 1, "UDP")
    assert server.asked["a.example", "A"] == 1
    clock.now += 59
    await resolver.find("a.example", 1, "UDP")
    assert server.asked["a.example", "A"] == 1
    clock.now += 2
    server.changed["a.example", "A"] = (60, ["192.0.2.111"])
    assert await resolver.find("a.example", 1, "UDP") == [("192.0.2.111", 1)]
    assert server.asked["a.example", "A"] == 2


async def test_resolver_tiny_ttl_and_missing_names_are_kept_for_their_bounds(
    server: NameServer, make: Callable[..., Finder]
) -> None:
    clock = Clock()
    resolver = make(clock=clock, families=(4,), min_ttl_s=5, negative_ttl_s=30)
    for host in ("short.example", "missing.example") * 2:
        await resolver.find(host, 1, "UDP")
    assert set(server.asked.values()) == {1}
    clock.now += 6
    for host in ("short.example", "missing.example"):
        await resolver.find(host, 1, "UDP")
    assert server.asked == {("short.example", "A"): 2, ("missing.example", "A"): 1}


@pytest.mark.parametrize("trouble", ["silent", "failing"])
async def test_resolver_stale_record_is_used_while_the_name_server_is_away(
    server: NameServer, make: Callable[..., Finder], trouble: str
) -> None:
    """RFC 8767."""
    clock = Clock()
    resolver = make(clock=clock, families=(4,), patience_s=0.05, stale_s=3600, timeout_s=2.0, retry_s=5)
    await resolver.find("srv.example", 0, "UDP")
    getattr(server, trouble).add("*")
    clock.now += 61
    assert (await resolver.find("srv.example", 0, "UDP"))[0] == ("192.0.2.1", 5070)
    assert resolver._pending or trouble == "failing"  # it has not waited for the whole time-out
    await until(lambda: not resolver._pending)
    asked = sum(server.asked.values())
    assert (await resolver.find("srv.example", 0, "UDP"))[0] == ("192.0.2.1", 5070)
    assert sum(server.asked.values()) == asked  # a pause before the next try
    assert resolver.counters["stale"] > 0
    clock.now += 3700
    assert await resolver.find("srv.example", 0, "UDP") == []  # too old


async def test_resolver_server_that_comes_back_replaces_the_stale_record(
    server: NameServer, make: Callable[..., Finder]
) -> None:
    clock = Clock()
    resolver = make(clock=clock, families=(4,), retry_s=5)
    await resolver.find("a.example", 1, "UDP")
    clock.now += 61
    server.failing.add("*")
    assert await resolver.find("a.example", 1, "UDP") == [("192.0.2.1", 1)]
    server.failing.clear()
    server.changed["a.example", "A"] = (60, ["192.0.2.5"])
    clock.now += 6
    assert await resolver.find("a.example", 1, "UDP") == [("192.0.2.5", 1)]


async def test_resolver_lookups_of_one_name_at_once_are_one(server: NameServer, make: Callable[..., Finder]) -> None:
    resolver = make(families=(4,))
    answers = await asyncio.gather(*(resolver.find("srv.example", 0, "UDP") for _ in range(50)))
    assert all(answer == answers[0] and answer for answer in answers)
    assert set(server.asked.values()) == {1}
    assert resolver.counters["joined"] > 0


async def test_resolver_cancelled_caller_does_not_cost_the_others_their_answer(
    server: NameServer, make: Callable[..., Finder]
) -> None:
    resolver = make(families=(4,))
    first = asyncio.create_task(resolver.find("a.example", 1, "UDP"))
    second = asyncio.create_task(resolver.find("a.example", 1, "UDP"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == [("192.0.2.1", 1)]
    assert server.asked["a.example", "A"] == 1


@pytest.mark.parametrize("port", [0, 5060])
async def test_resolver_silent_server_ends_within_the_bound(server: NameServer, make: Callable[..., Finder], port: int) -> None:
    server.silent.add("*")
    resolver, patient = make(timeout_s=0.3), make(timeout_s=60.0)
    waiting = asyncio.create_task(patient.find("a.example", port, "UDP"))
    assert await resolver.find("a.example", port, "UDP") == []
    assert not waiting.done()
    await patient.close()
    assert await waiting == []
    assert resolver.failures["timeout"] == 1
    await until(lambda: not resolver._pending)
    asked = sum(server.asked.values())
    assert await resolver.find("a.example", port, "UDP") == []
    assert sum(server.asked.values()) == asked  # the failure is remembered for a moment


async def test_resolver_lost_datagram_is_repeated(server: NameServer, make: Callable[..., Finder]) -> None:
    server.lose = 1
    assert await make(families=(4,), timeout_s=4.0).find("a.example", 1, "UDP") == [("192.0.2.1", 1)]


async def test_resolver_server_silent_about_one_family_does_not_hold_up_the_other(
    server: NameServer, make: Callable[..., Finder]
) -> None:
    server.silent.add("AAAA")
    async with asyncio.timeout(40):  # the resolver itself would wait for 60 s
        assert len(await make(timeout_s=60.0, patience_s=0.1).find("both.example", 1, "UDP")) == 2


async def test_resolver_server_that_fails_on_srv_still_gives_addresses(server: NameServer, make: Callable[..., Finder]) -> None:
    server.failing.add("SRV")
    assert await make().find("a.example", 0, "UDP") == [("192.0.2.1", 5060)]


async def test_resolver_cache_forgets_the_least_recently_used(server: NameServer, make: Callable[..., Finder]) -> None:
    resolver = make(families=(4,), max_entries=2)
    for host in ("a.example", "both.example", "a.example", "short.example", "a.example"):
        await resolver.find(host, 1, "UDP")
    assert (len(resolver), resolver.counters["evicted"], server.asked["a.example", "A"]) == (2, 1, 1)
    await resolver.find("both.example", 1, "UDP")
    assert server.asked["both.example", "A"] == 2


async def test_resolver_lookups_under_way_are_bounded(server: NameServer, make: Callable[..., Finder]) -> None:
    server.silent.add("*")
    resolver = make(families=(4,), max_pending=1, timeout_s=0.2)
    answers = await asyncio.gather(*(resolver.find(f"h{n}.example", 1, "UDP") for n in range(3)))
    assert answers == [[], [], []]
    assert (resolver.failures["busy"], resolver.failures["timeout"]) == (2, 1)


async def test_resolver_hosts_file_and_localhost_need_no_name_server(
    server: NameServer, make: Callable[..., Finder], tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# comment\n192.0.2.50 Trunk.local trunk # x\n2001:db8::50 trunk.local\nnonsense line\n\n192.0.2.51\n")
    resolver = make(hosts_file=hosts)
    assert await resolver.find("trunk.LOCAL", 0, "UDP") == [("192.0.2.50", 5060), ("2001:db8::50", 5060)]
    assert await resolver.find("trunk", 7, "TCP") == [("192.0.2.50", 7)]
    assert await resolver.find("localhost", 5060, "UDP") == [("127.0.0.1", 5060), ("::1", 5060)]
    assert not server.asked
    assert await make(hosts_file=tmp_path / "none").find("a.example", 1, "UDP") == [("192.0.2.1", 1)]


async def test_resolver_without_any_name_server_finds_nothing(
    make: Callable[..., Finder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unconfigured(*_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", unconfigured)
    resolver = make(nameservers=())
    assert await resolver.find("a.example", 0, "UDP") == []
    assert resolver.failures["server_failure"] == 1


async def test_resolver_close_ends_what_is_under_way(server: NameServer, make: Callable[..., Finder]) -> None:
    server.silent.add("*")
    resolver = make(families=(4,), timeout_s=30.0)
    task = asyncio.create_task(resolver.find("a.example", 1, "UDP"))
    await until(lambda: server.asked)
    await resolver.close()
    async with asyncio.timeout(15):  # the resolver itself would wait for 30 s
        assert await task == []


async def test_names_that_are_looked_up_ahead_are_known_when_they_are_needed(
    server: NameServer, make: Callable[..., Finder]
) -> None:
    """What is sent asks nobody, also when the record's time is over, and when the name server has gone since."""
    now = 1000.0
    resolver, told = make(clock=lambda: now, families=(4,)), []
    transports = Transports(resolver, lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None)
    transports.on_resolved = lambda hop, places: told.append((hop.host, sorted({place.host for place in places})))
    hops = [Hop("UDP", "a.example", 5060), Hop("UDP", "srv.example"), Hop("UDP", "192.0.2.7", 5060)]
    await transports.look_ahead(hops)
    assert sorted(told) == [("a.example", ["192.0.2.1"]), ("srv.example", ["192.0.2.1", "192.0.2.2", "192.0.2.3"])]
    now += 60.0 - AHEAD_S - 1.0
    before = resolver.counters["queries"]
    await transports.look_ahead(hops)
    assert resolver.counters["queries"] == before, "there is time yet"
    now += 2.0
    await transports.look_ahead(hops)
    assert resolver.counters["queries"] == 2 * before
    now += AHEAD_S
    server.silent.add("*")
    for hop in hops[:2]:
        assert await resolver.find(hop.host, hop.port, hop.transport)
    assert (resolver.counters["queries"], resolver.counters["stale"]) == (2 * before, 0)
