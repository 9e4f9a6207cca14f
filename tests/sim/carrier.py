"""A carrier that asks for credentials, holds registrations, and is strict about CSeq, on the virtual network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sipproxy.sip.build import write_response
from sipproxy.sip.digest import ha1, parse_credentials, verify, write_challenge
from sipproxy.sip.flow import Flow
from tests.sim.agent import Agent
from tests.sim.conftest import PSAP, TRUNK_A, TRUNK_B, Town, town_snapshot
from tests.sim.world import World, trunk

if TYPE_CHECKING:
    from sipproxy.sip.message import Request
    from tests.sim.world import Address

USER, PASSWORD, CARRIER_REALM = "node-77", "s3cret-pass", "carrier.test"


class Carrier(Agent):
    """`asks` are the methods that need credentials, `faults` what a strict UAS would have refused.

    `stale` is how many answers are met with another nonce, `also` are further headers of a challenge. `pings` False leaves
    OPTIONS unanswered. `registers` are the REGISTERs that were let in, `grant_s` is what they get.
    """

    def __init__(self, world: World, address: Address, host: str = "") -> None:
        super().__init__(world, address, host=host)
        self.asks: frozenset[bytes] = frozenset()
        self.challenge_status = 407
        self.stale = 0
        self._stale = False
        self.also: tuple[tuple[bytes, bytes], ...] = ()
        self.pings = True
        self.options_status = 200
        self.grant_s = 600
        self.least_s = 0
        self.register_status = 200
        self.registers: list[Request] = []
        self.challenged: list[Request] = []
        self.faults: list[str] = []
        self._last: dict[tuple[bytes, bytes], int] = {}

    def _request(self, request: Request, source: Address) -> None:
        self._check_order(request)
        if request.method == b"OPTIONS" and request.to.tag is None:
            self.requests.append(request)
            if self.pings:
                self._reply(request, source, self.options_status)
        elif request.method in self.asks and not self._proven(request):
            self.challenged.append(request)
            name = b"WWW-Authenticate" if self.challenge_status == 401 else b"Proxy-Authenticate"
            value = write_challenge(CARRIER_REALM, self._token(), "MD5", stale=self._stale)
            self._stale = False
            self._reply(request, source, self.challenge_status, (*self.also, (name, value)))
        elif request.method == b"REGISTER":
            self._register(request, source)
        else:
            super()._request(request, source)

    def _register(self, request: Request, source: Address) -> None:
        self.requests.append(request)
        wanted = int(request.first(b"expires") or b"0")
        if self.register_status != 200:
            self._reply(request, source, self.register_status)
        elif wanted < self.least_s:
            self._reply(request, source, 423, ((b"Min-Expires", b"%d" % self.least_s),))
        else:
            self.registers.append(request)
            self._reply(request, source, 200, self.granted(request))

    def granted(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """The lines of a 200 to REGISTER."""
        return ((b"Contact", (request.first(b"contact") or b"") + b";expires=%d" % self.grant_s),)

    def _check_order(self, request: Request) -> None:
        """RFC 3261 §8.2.2.2 and §12.2.2: no number comes twice with another branch, none goes back."""
        key, number = (request.call_id, request.from_.tag or b""), request.cseq.number
        if request.method in (b"ACK", b"CANCEL"):
            if number != self._last.get(key):
                self.faults.append(f"{request.method!r} with {number} after {self._last.get(key)}")
            return
        if number <= self._last.get(key, 0):
            self.faults.append(f"{request.method!r} with {number} after {self._last[key]}")
        self._last[key] = number

    def _proven(self, request: Request) -> bool:
        values = request.lines(b"authorization" if self.challenge_status == 401 else b"proxy-authorization")
        if not values or self.stale:
            self._stale = bool(values)
            self.stale -= bool(values)
            return False
        credentials = parse_credentials(values[-1])
        known = ha1("MD5", USER, CARRIER_REALM, PASSWORD)
        return credentials.uri == request.uri and verify(credentials, request.method, known)

    def _reply(self, request: Request, source: Address, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        server = self._tx.new_server(request, Flow("UDP", 0, *source), self.world.now)
        data = write_response(request, status, to_tag=self._token(), headers=headers)
        self._tx.respond(server, status, data, self.world.now)


def carrier_town(
    *, seed: int = 1, a: dict[str, object] | None = None, b: dict[str, object] | None = None, **options: object
) -> Town:
    """A town whose trunk routes have these settings, with a carrier at the end of each; `start` was told to the engine."""
    routes = (replace(trunk("carrier-a", TRUNK_A), **(a or {})), replace(trunk("carrier-b", TRUNK_B, 1), **(b or {})))  # type: ignore[arg-type]
    world = World(town_snapshot(), seed=seed, trunks=routes, **options)  # type: ignore[arg-type]
    town = Town(
        world,
        Agent(world, ("203.0.113.1", 5060), "alice"),
        Agent(world, ("203.0.113.2", 5062), "andrea"),
        Agent(world, ("203.0.113.3", 5060), "bob"),
        Carrier(world, TRUNK_A, host="198.51.100.1"),
        Carrier(world, TRUNK_B, host="198.51.100.2"),
        Agent(world, PSAP),
    )
    world.perform([])
    return town


CREDENTIALS: dict[str, object] = {"user": USER, "password": PASSWORD}
