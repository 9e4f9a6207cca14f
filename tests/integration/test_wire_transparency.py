"""Messages as odd as they are valid, through a real node and over real sockets, both ways and within calls: what arrives is
what was sent, but for what RFC 3261 §16 has a proxy change, session timers (RFC 4028 §8) and who the caller is (RFC 3325).

Both parties write everything they say in another way each time. `SIPPROXY_ODD_CALLS` is how many calls there are (25).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from loadtest.agents import Answering, next_call
from loadtest.network import Network
from loadtest.node import LineSpec
from sipproxy.sip.message import Request, Response, parse_message
from tests.sip.odd import BODIES, disguised, name_of, split

if TYPE_CHECKING:
    from loadtest.agents import Party, Router
    from loadtest.dialog import Address, Call

CALLS = int(os.environ.get("SIPPROXY_ODD_CALLS", "25"))
LINES = [  # with channels enough for all the calls that they start within a minute
    LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=200),
    LineSpec("B2002", "b2002", "secret-c", "+49603255502", channels=200),
]
DIALLED = "03023125001"
# §16.6: Via, Max-Forwards, Record-Route, Route. The proxy takes what is addressed to it, and says who the caller is.
CHANGED = frozenset(b"via max-forwards record-route route proxy-authorization p-asserted-identity".split())
ADDED = frozenset(b"session-expires require".split())  # RFC 4028 §8.1, §8.2: where the party said nothing of it

Key = tuple[object, ...]


@dataclass
class Disguise:
    """Has a party write all that it sends in another way; `sent` is that, `arrived` what it was sent, by `key_of`."""

    party: Party
    random: Random = field(default_factory=Random)
    sent: dict[Key, bytes] = field(default_factory=dict)
    arrived: dict[Key, bytes] = field(default_factory=dict)
    plain: dict[bytes, bytes] = field(default_factory=dict)  # repetitions are the same, byte for byte

    def __post_init__(self) -> None:
        self._send, self._hear = self.party.send, self.party.datagram_received
        self.party.send = self.send  # type: ignore[method-assign]
        self.party.datagram_received = self.hear  # type: ignore[method-assign]

    def begin(self, seed: int) -> None:
        self.random = Random(seed)
        for table in (self.sent, self.arrived, self.plain):
            table.clear()  # type: ignore[attr-defined]

    def send(self, data: bytes, to: Address) -> None:
        if data not in self.plain:
            written = self.plain[data] = disguised(data, self.random, body=self._body(data))
            self.sent[key_of(written)] = written
        self._send(self.plain[data], to)

    def _body(self, data: bytes) -> bytes | None:
        """Another one where nobody needs it: what the proxy reads of a session description is left alone half of the time."""
        may = data.startswith((b"INFO ", b"INVITE ", b"UPDATE ")) or b" 200 " in data[:12]
        return self.random.choice((*BODIES, None, None, None)) if may else None

    def hear(self, data: bytes, addr: tuple[str | object, int]) -> None:
        if data.strip():
            self.arrived.setdefault(key_of(data), data)
        self._hear(data, addr)


def key_of(data: bytes) -> Key:
    """Which message this is, on either side of the proxy."""
    message = parse_message(data)
    what: object = message.method if isinstance(message, Request) else message.status
    return what, message.call_id, message.cseq.number, message.cseq.method, message.from_.tag


def difference(sent: bytes, arrived: bytes) -> str:
    """How what arrived differs from what was sent where it may not, "" for not at all."""
    before, after = parse_message(sent), parse_message(arrived)
    (start, lines, body), (start_after, lines_after, body_after) = split(sent), split(arrived)
    vias = [[line for line in found if name_of(line) == b"via"] for found in (lines, lines_after)]
    changed = CHANGED
    if isinstance(before, Response):
        assert isinstance(after, Response)
        changed = frozenset({b"via"})
        if start != start_after:
            return f"start line {start_after!r}"
        if vias[0][1:] != vias[1]:  # §16.7 step 3: ours is gone, the others are as they were
            return f"Via {vias[1]} of {vias[0]}"
    else:
        assert isinstance(before, Request)
        assert isinstance(after, Request)
        if after.method != before.method or (before.to.tag and after.uri != before.uri):
            return f"start line {start_after!r}"
        if before.max_forwards is None or after.max_forwards != before.max_forwards - 1:
            return f"Max-Forwards {after.max_forwards}"
        if len(vias[1]) != len(vias[0]) + 1 or vias[0][1:] != vias[1][2:] or after.vias[1].branch != before.via.branch:
            return f"Via {vias[1]} of {vias[0]}"
    added = ADDED - {name_of(line) for line in lines}
    kept = [line for line in lines if name_of(line) not in changed]
    kept_after = [line for line in lines_after if name_of(line) not in changed | added]
    if kept != kept_after:
        return f"lines {kept_after} of {kept}"
    return "" if body == body_after else f"body {body_after!r} of {body!r}"


async def talk(call: Call, other: Call, random: Random) -> None:
    """Requests of either side within the call, in any order."""
    for number in range(random.randrange(2, 6)):
        one = random.choice((call, other))
        method = random.choice((b"INFO", b"INVITE", b"OPTIONS", b"UPDATE"))
        headers = [(b"Contact", one.agent.contact)] if method in (b"INVITE", b"UPDATE") else []
        response = await one.request(method, headers, b"x%d" % number)
        assert response.status == 200, response.raw
        if method == b"INVITE":
            one.agent.send(one.write(b"ACK", cseq=one.cseq), one.next_hop)


async def example(seed: int, network: Network, router: Router, sides: tuple[Disguise, Disguise]) -> None:
    random = Random(seed)
    for number, side in enumerate(sides):
        side.begin(seed + number)
    network.trunk.answering = router.answering = Answering(status=random.choice((200, 200, 200, 486, 603)))
    outgoing = random.random() < 0.6
    caller, callee = (router, network.trunk) if outgoing else (network.trunk, router)
    if outgoing:
        call = await router.call(DIALLED)
    else:
        call = await network.trunk.call("+49603255501" if router.user == "b2001" else "+49603255502", network.node.address)
    status = await call.final()
    other = await next_call(callee)
    assert status == router.answering.status, f"{caller.trace(6)}\n{callee.trace(6)}"
    if status == 200:
        await asyncio.wait_for(other.acked.wait(), 20)
        await talk(call, other, random)
        assert await random.choice((call, other)).hang_up() == 200
        await asyncio.gather(call.wait_ended(), other.wait_ended())
    await asyncio.wait_for(_all_here(sides), 20)
    compared = 0
    for one, two in (sides, sides[::-1]):
        for key, sent in one.sent.items():
            arrived = two.arrived.get(key)
            if arrived is not None and key[0] != 100 and (status == 200 or key[0] != b"ACK"):  # §17.1.1.3: hop by hop
                compared += 1
                assert not difference(sent, arrived), f"{difference(sent, arrived)}\n{sent!r}\n{arrived!r}"
    assert compared >= 2 + 5 * (status == 200), f"{caller.trace(20)}"


async def _all_here(sides: tuple[Disguise, Disguise]) -> None:
    """What was answered has arrived; the last response may still be under way."""
    while not any(key[3] == b"BYE" and key[0] == 200 for side in sides for key in side.arrived):
        if not any(key[3] == b"BYE" for side in sides for key in side.sent):
            return
        await asyncio.sleep(0.01)


def test_odd_messages_arrive_as_they_were_sent_over_real_sockets_and_within_calls() -> None:
    with asyncio.Runner() as runner:
        network = runner.run(Network(LINES, settings={"limits": {"udp_bytes": 0}}).__aenter__())
        try:
            routers = [runner.run(network.router("b2001")), runner.run(network.router("b2002", tcp=True))]
            trunk = Disguise(network.trunk)
            disguises = [Disguise(router) for router in routers]

            @settings(
                max_examples=CALLS, database=None, phases=(Phase.generate, Phase.shrink),
                suppress_health_check=[HealthCheck.too_slow],
            )  # fmt: skip
            @given(st.integers(0, 2**32 - 1), st.integers(0, 1))
            def calls(seed: int, which: int) -> None:
                runner.run(example(seed, network, routers[which], (disguises[which], trunk)))

            calls()
        finally:
            runner.run(network.__aexit__(None, None, None))
