"""The corpora against a real node: as a stranger, as a carrier's address and as a line with credentials, over UDP and TCP.

Every message that the node sends is seen (`eye.py`), wherever it goes. After each case comes an OPTIONS from elsewhere: when it
is answered, what the case caused at once has been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from loadtest.agents import Answering
from loadtest.network import TRUNK_HOST, Network
from loadtest.node import LineSpec
from loadtest.reconcile import becomes
from loadtest.run import LOAD_SETTINGS
from sipproxy.engine.forward import TRUSTED_ONLY
from sipproxy.sip.build import write_ack, write_request
from sipproxy.sip.digest import Challenge, parse_challenge, write_credentials
from sipproxy.sip.errors import ParseError
from sipproxy.sip.message import Request, Response, check_message, parse_message
from tests.sip.torture_corpus import data as read
from tests.sip.torture_corpus import protos_cases, rows
from tests.torture.expected import FORWARD, SILENCE, UNAIMED, Case, allowed, has_length
from tests.torture.eye import Eye, Seen
from tests.torture.pulse import HOST as PULSE
from tests.torture.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

STRANGER, LINE, PROBE = "127.0.0.50", "127.0.0.60", "127.0.0.49"
ROLES = {"stranger": STRANGER, "trunk": TRUNK_HOST, "line": LINE}
USER, PASSWORD, NUMBER = "b2001", "secret-b", "+49603255501"
DIALLED = b"sip:03023125001@example.com"
PATIENCE_S = 30.0
DATAGRAM = 65_507
AT_ONCE = 15  # cases under way: a node bounds the connections of one source
# What a proxy adds or changes (RFC 3261 §16.6), and what our own policy adds or takes: all other lines leave as they came.
OURS = frozenset(
    b"via route max-forwards record-route proxy-authorization p-asserted-identity privacy session-expires require "
    b"content-length from proxy-require".split()
) | frozenset(TRUSTED_ONLY)
_ADDRESS = re.compile(rb"(\n(?:from|to|f|t)[ \t]*:)[^\r\n]*(?:\r\n[ \t][^\r\n]*)*", re.IGNORECASE)
_AIMABLE = re.compile(rb"\AINVITE sips?:[^ <>\r\n?]+ SIP/2\.0\r\n")
_MARK = re.compile(rb"qx([0-9]+)xq")
_BRANCH = re.compile(rb"(?i)(;[ \t]*branch[ \t]*=[ \t]*z9hG4bK[A-Za-z0-9.\-]+)")
_CALL_ID = re.compile(rb"(?i)(\n(?:call-id|i)[ \t]*:(?:[ \t]|\r\n[ \t])*[^ \t\r\n]+)(?=\r\n)")
LINES = [LineSpec("B2001", USER, PASSWORD, NUMBER, channels=500)]
SETTINGS = {
    "log": {"level": "info"},
    "registrar": {"realm": "sip.example", "domains": ["sip.example", "example.com", "biloxi.com"], "max_contacts": 100},
    "limits": {**LOAD_SETTINGS["limits"], "guesses_user": 1_000_000, "guesses_source": 1_000_000, "guesses_pair": 1_000_000},
}


class Outcome(NamedTuple):
    """What one case did in one role: statuses, `forward` or `silence`; `faults` are what must never be."""

    case: str
    role: str
    transport: str
    seen: frozenset[str]
    may: frozenset[str]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults and (not self.may or self.seen <= self.may)

    def __str__(self) -> str:
        return f"{self.case} as {self.role} over {self.transport}: {sorted(self.seen)}, may {sorted(self.may)} {self.faults}"


def marked(data: bytes, number: int) -> bytes:
    """The message as the case with this number: another transaction and another call than the same one in another role."""
    mark = b"qx%dxq" % number
    return _CALL_ID.sub(rb"\1" + mark, _BRANCH.sub(rb"\1" + mark, data, count=1), count=1)


def manifest_cases() -> list[Case]:
    """RFC 4475 and RFC 5118, and the advisories."""
    found = [Case(row["name"], read("rfc", row["name"]), row["proxy_registrar_must"], "rfc") for row in rows("rfc")]
    return found + [Case(row["name"], read("advisory", row["name"]), row["expect"], row["class"]) for row in rows("advisory")]


@dataclass
class Torture:
    """A node with its eye and three kinds of senders. Use `opened`."""

    network: Network
    eye: Eye
    pulse: Pulse
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    challenge: Challenge | None = None
    nc: int = 0
    probes: int = 0
    cases: int = 0
    alone: Caused | None = None  # what bears no mark is its
    caused: dict[int, Caused] = field(default_factory=dict)  # by the number of the case that is under way
    late_ms: list[float] = field(default_factory=list)

    @property
    def node(self) -> tuple[str, int]:
        return self.network.node.address

    async def prepare(self) -> None:
        """Sockets for the roles, and the line's registration."""
        self.eye.node = self.node
        self.network.trunk.answering = Answering(status=603)
        self.network.psap.answering = Answering(status=603)
        for role, host in (*ROLES.items(), ("probe", PROBE)):
            sock = self.sockets[role] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((host, 0))
            sock.setblocking(False)
        for _ in range(2):
            (status,) = (await self.put("line", self.register(), tcp=False, may=frozenset({"200"}))).statuses
        assert status == "200", status

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()

    def register(self) -> bytes:
        sock = self.sockets["line"].getsockname()
        aor = b"<sip:%s@sip.example>" % USER.encode()
        via = b"SIP/2.0/UDP %s:%d;branch=z9hG4bKreg%d;rport" % (sock[0].encode(), sock[1], self.nc)
        head = [
            (b"Via", via),
            (b"Max-Forwards", b"70"),
            (b"From", aor + b";tag=r"),
            (b"To", aor),
            (b"Call-ID", b"torture-line"),
        ]
        head += [(b"CSeq", b"%d REGISTER" % (self.nc + 1)), (b"Expires", b"3600")]
        head += [
            (b"Contact", b"<sip:%s@%s:%d>" % (USER.encode(), sock[0].encode(), sock[1])),
            *self.proof(b"REGISTER", b"sip:sip.example"),
        ]
        return write_request(b"REGISTER", b"sip:sip.example", head)

    def proof(self, method: bytes, uri: bytes) -> list[tuple[bytes, bytes]]:
        """Credentials of the line for this request; none before its first challenge."""
        if self.challenge is None:
            return []
        self.nc += 1
        name = b"Authorization" if method == b"REGISTER" else b"Proxy-Authorization"
        value = write_credentials(
            self.challenge, method=method, uri=uri, user=USER, password=PASSWORD, cnonce=b"0a4f113b", nc=self.nc
        )
        return [(name, value)]

    def proven(self, data: bytes, *, aimed: bool) -> bytes:
        """The message as the line would send it: with credentials; `aimed` at a number, or a REGISTER at its own address."""
        method, _, rest = data.partition(b" ")
        if method not in (b"REGISTER", b"INVITE") or not rest:
            return data
        if aimed and method == b"REGISTER":
            data = _ADDRESS.sub(lambda found: b"%b <sip:%b@sip.example>%b" % (found[1], USER.encode(), _tag(found[0])), data)
        elif aimed and _AIMABLE.match(data):
            data = _AIMABLE.sub(b"INVITE " + DIALLED + b" SIP/2.0\r\n", data)
        first, end, after = data.partition(b"\r\n")
        uri = first.rpartition(b" ")[0].partition(b" ")[2]
        try:
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in self.proof(method, uri))
        except ValueError:
            return data
        return first + end + lines + after

    async def put(self, role: str, data: bytes, *, tcp: bool, may: frozenset[str] = frozenset()) -> Caused:
        """Send it alone and return what the node sent because of it."""
        self.cases += 1
        caused = self.alone = self.caused[self.cases] = Caused(ROLES[role], role, data, may)
        stream = await self.send(role, data, tcp=tcp)
        await self.settle()
        self.alone = None
        if stream is not None:
            stream.close()
        self.caused.clear()
        self._learn(caused)
        return caused

    async def send(self, role: str, data: bytes, *, tcp: bool) -> asyncio.StreamWriter | None:
        if not tcp:
            self.sockets[role].sendto(data, self.node)
            return None
        _, stream = await asyncio.open_connection(*self.node, local_addr=(ROLES[role], 0))
        stream.write(data)
        with contextlib.suppress(ConnectionError):
            await stream.drain()
        return stream

    async def settle(self) -> None:
        """Until nothing is under way: calls that are being set up take a moment in the store."""
        for _ in range(
            6 if self.alone is not None else 2
        ):  # what is read after the probe of one turn of the node's loop is read in the next
            self._sort(await self.probe())
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while any(caused.waits for caused in self.caused.values()) and loop.time() < until:
            await asyncio.sleep(0.01)
            self._sort(await self.probe())

    def _sort(self, seen: Iterable[Seen]) -> None:
        """What bears the mark of a case belongs to it."""
        for one in seen:
            numbers = {int(number) for number in _MARK.findall(one.data)}
            caused = self.alone if not numbers else self.caused.get(min(numbers))
            if caused is not None:
                caused.add([one])
                if one in caused.answers:
                    self._acknowledge(caused, one)

    async def all(self, cases: Sequence[Case], role: str, *, tcp: bool, aimed: bool = False) -> list[Outcome]:
        """All of the cases in one role; those that bear no mark one by one."""
        found = []
        for begin in range(0, len(cases), AT_ONCE):
            found += await self._some(cases[begin : begin + AT_ONCE], role, tcp=tcp, aimed=aimed)
        return found

    async def _some(self, cases: Sequence[Case], role: str, *, tcp: bool, aimed: bool) -> list[Outcome]:
        found, sent, streams, alone = [], {}, [], []
        for case in cases:
            self.cases += 1
            data = marked(case.data, self.cases)
            if data == case.data or (tcp and not has_length(data)):
                alone.append(case)
                continue
            data = self.proven(data, aimed=aimed) if role == "line" and case.kind != "digest parsing" else data
            sent[self.cases] = case
            self.caused[self.cases] = Caused(ROLES[role], role, data, self._may(case, role, data, tcp=tcp, aimed=aimed))
            streams.append(await self.send(role, data, tcp=tcp))
            if len(sent) % 10 == 0:
                self._sort(await self.probe())
        await self.settle()
        for stream in streams:
            if stream is not None:
                stream.close()
        for number, case in sent.items():
            found.append(self._outcome(case, self.caused[number], tcp=tcp, aimed=aimed))
        self.caused.clear()
        for case in alone:
            prove = role == "line" and case.kind != "digest parsing"
            data = self.proven(case.data, aimed=aimed) if prove else case.data
            may = self._may(case, role, data, tcp=tcp, aimed=aimed)
            found.append(self._outcome(case, await self.put(role, data, tcp=tcp, may=may), tcp=tcp, aimed=aimed))
        return found

    def _outcome(self, case: Case, caused: Caused, *, tcp: bool, aimed: bool) -> Outcome:
        name = case.name + (" aimed" if aimed else "")
        return Outcome(
            name, caused.role, "TCP" if tcp else "UDP", caused.outcome(), caused.may, tuple(caused.faults(self.network))
        )

    @staticmethod
    def _may(case: Case, role: str, data: bytes, *, tcp: bool, aimed: bool) -> frozenset[str]:
        return allowed(case, data, tcp=tcp, trusted=role != "stranger", proven=aimed)

    async def probe(self) -> list[Seen]:
        """A valid OPTIONS, and all that the node sent until its answer."""
        self.probes += 1
        mark = b"probe-%d" % self.probes
        host, port = self.sockets["probe"].getsockname()
        uri = b"sip:%s:%d" % (self.node[0].encode(), self.node[1])
        via = b"SIP/2.0/UDP %s:%d;branch=z9hG4bK%s;rport" % (host.encode(), port, mark)
        lines = [(b"Via", via), (b"Max-Forwards", b"70"), (b"From", b"<sip:p@x>;tag=1"), (b"To", b"<" + uri + b">")]
        lines += [(b"Call-ID", mark), (b"CSeq", b"1 OPTIONS"), (b"Subject", b"x" * 400)]  # a stranger gets no more than he sent
        data = write_request(b"OPTIONS", uri, lines)
        loop = asyncio.get_running_loop()
        began, found = loop.time(), list[Seen]()
        while loop.time() - began < PATIENCE_S:
            self.sockets["probe"].sendto(data, self.node)
            until = loop.time() + 1.0
            while loop.time() < until:
                self.eye.more.clear()
                found += self.eye.take()
                if any(one.outgoing and one.destination[0] == host and mark in one.data for one in found):
                    self.late_ms.append(1000 * (loop.time() - began))
                    return [one for one in found if not {PROBE, PULSE} & {one.source[0], one.destination[0]}]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.eye.more.wait(), 0.5)
        raise AssertionError(f"no answer to an OPTIONS within {PATIENCE_S:g} s\n{self.network.node.log()}")

    def _acknowledge(self, caused: Caused, answer: Seen) -> None:
        """A refusal of an INVITE gets its ACK: nobody waits for timers."""
        with contextlib.suppress(ParseError, KeyError):  # what has no To gets no ACK
            request, response = parse_message(caused.data), parse_message(answer.data)
            assert isinstance(request, Request)
            assert isinstance(response, Response)
            if request.method == b"INVITE" and response.status >= 300:
                self.sockets[caused.role].sendto(write_ack(request, response), self.node)

    def _learn(self, caused: Caused) -> None:
        for answer in caused.answers:
            with contextlib.suppress(ParseError):
                response = parse_message(answer.data)
                if answer.destination[0] == LINE and isinstance(response, Response) and response.status in (401, 407):
                    name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
                    challenge = parse_challenge(response.lines(name)[0])
                    if self.challenge is None or challenge.stale:
                        self.challenge, self.nc = challenge, 0

    async def left(self, *, timeout_s: float) -> dict[str, float]:
        """What the node still holds: transactions, calls, connections, slots, bindings that are not the line's; empty as soon
        as that is nothing."""

        async def held() -> dict[str, float]:
            metrics = await self.network.node.metrics()
            names = ("sipproxy_transactions_live", "sipproxy_calls_live", "sipproxy_connections", "sipproxy_slots_owed")
            found = {name: value for name, value in metrics.items() if name.startswith(names) and value}
            found |= {"bindings": extra} if (extra := metrics.get("sipproxy_registrations", 1.0) - 1) else {}
            slots = await self.network.slots_of_all(0, timeout_s=0.0)
            return found | ({"slots": float(slots)} if slots else {})

        return await becomes(held, {}, timeout_s=timeout_s)

    def troubles(self) -> list[str]:
        """Lines of the node's log that no message may bring about."""
        lines = self.network.node.log(tail=100_000_000).splitlines()
        return [line for line in lines if re.search(r'Traceback|Exception|"level": "(?:error|critical)"', line)]


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Torture]:
    """A network with a node whose every message is seen."""
    eye = Eye()
    host, port = await eye.open()
    try:
        settings = {**SETTINGS, "hep": {"address": f"{host}:{port}"}}
        async with Network(LINES, settings=settings, route={"ping_s": 0}) as network, Pulse(network.node.address) as pulse:
            torture = Torture(network, eye, pulse)
            await torture.prepare()
            try:
                yield torture
            finally:
                torture.close()
    finally:
        eye.close()


async def manifests(torture: Torture) -> list[Outcome]:
    """RFC 4475, RFC 5118 and the advisories in every role, over UDP and over TCP."""
    found = []
    for tcp in (False, True):
        cases = [case for case in manifest_cases() if tcp or len(case.data) <= DATAGRAM]
        for role in ROLES:
            found += await torture.all(cases, role, tcp=tcp)
        aimed = [case for case in cases if case.name not in UNAIMED]
        found += await torture.all(aimed, "line", tcp=tcp, aimed=True)
    return found


def protos(step: int = 1) -> list[bytes]:
    """Every `step`th case of the PROTOS suite, each with what ends it."""
    return [data for number, _, message, end in protos_cases() if number % step == 0 for data in (message, end) if data]


@dataclass
class Caused:
    """What the node sent because of one message from `host`."""

    host: str
    role: str
    data: bytes
    may: frozenset[str]
    answers: list[Seen] = field(default_factory=list)
    onward: list[Seen] = field(default_factory=list)

    def add(self, seen: Iterable[Seen]) -> None:
        for one in seen:
            if one.outgoing and one.destination[0] == self.host and one.data.startswith(b"SIP/2.0 "):
                self.answers.append(one)
            elif one.outgoing:
                self.onward.append(one)

    @property
    def statuses(self) -> set[str]:
        return {one.data[8:11].decode() for one in self.answers} - {"100"}

    @property
    def waits(self) -> bool:
        """Whether something has to come: of a stream that is being read, or of a call that is being set up in the store."""
        if self.may and SILENCE not in self.may and not self.answers and not self.onward:
            return True
        return any(one.data[8:11] == b"100" for one in self.answers) and not {s for s in self.statuses if s >= "200"}

    def outcome(self) -> frozenset[str]:
        if any(not one.data.startswith((b"SIP/2.0", b"ACK ", b"CANCEL ")) for one in self.onward):
            return frozenset({FORWARD})
        return frozenset(self.statuses) or frozenset({SILENCE})

    def faults(self, network: Network) -> list[str]:
        """What must never be: a message to a place that nobody named, anything of a stranger's, a header that was not there."""
        found, role, data = [], self.role, self.data
        known = {self.host, network.trunk.host, network.psap.host, LINE}
        for one in (*self.answers, *self.onward):
            if one.destination[0] not in known:
                found.append(f"sent to {one.destination}")
            try:
                message = parse_message(one.data)
                check_message(message)
            except ParseError as error:
                if not one.data.startswith(b"SIP/2.0 4"):  # an answer repeats what its request had
                    found.append(f"sent what cannot be read: {error}")
                continue
            if isinstance(message, Request) and message.method not in (b"ACK", b"CANCEL"):
                try:
                    found += _unlike(message, data, role)
                except ParseError as error:
                    found.append(f"forwarded what cannot be read: {error}")
        if role == "stranger" and self.onward:
            found.append("a stranger's message was forwarded")
        finals = {one.data[:11] for one in self.answers if one.data[8:9] > b"1"}
        if len(finals) > 1 and data.count(b" SIP/2.0\r\n") == 1:
            found.append(f"more than one final answer: {sorted(finals)}")
        return found


def _tag(line: bytes) -> bytes:
    found = re.search(rb";[ \t]*tag[ \t]*=[ \t]*[^ \t;\r\n]+", line, re.IGNORECASE)
    return found[0] if found is not None else b""


def _unlike(sent: Request, data: bytes, role: str) -> list[str]:
    """How a forwarded request differs from what came, where it may not."""
    came, found = parse_message(data), []
    if sent.body != came.body:
        found.append("another body")
    before = [line for key, line in zip(came.keys, came.lines_raw, strict=True) if key and key not in OURS]
    after = [line for key, line in zip(sent.keys, sent.lines_raw, strict=True) if key and key not in OURS]
    if before != after:
        found.append(f"other lines: {before} {after}")
    if role == "line":
        claimed = [key for key in sent.keys if key in TRUSTED_ONLY and key != b"p-asserted-identity"]
        asserted = sent.values(b"p-asserted-identity")
        if claimed or any(NUMBER.encode() not in value for value in asserted):
            found.append(f"claims: {claimed} {asserted}")
    if b"<" in sent.uri or b"?" in sent.uri or sent.max_forwards is None or sent.max_forwards > 254:
        found.append(f"start line or Max-Forwards: {sent.lines_raw[0]!r}")
    return found
