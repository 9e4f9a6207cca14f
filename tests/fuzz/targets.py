"""What reads bytes that others wrote: each entry point as a function of bytes, with what it may be fed to begin with.

A target lets the entry point's own errors pass and nothing else: what it raises is a fault. What was read is used as the node
would use it, because a value can be well-formed and still break who believes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import msgspec

from cdr import codec as cdr_codec
from cdr.entries import entry_of
from cdr.facts import Admit, Alive, Answer, End, Record
from cdr.recovery import JournalError
from cdr.recovery import load as load_journal
from cdr.segment import Header, file_name, write_frame, write_header
from policy import codec as policy_codec
from policy import parse, parse_rules, profiles
from policy.build import snapshot_of
from policy.evaluate import evaluate
from policy.model import CallAttempt, Direction
from policy.table import PolicyError
from sipproxy.config_file import ConfigError
from sipproxy.config_file import load as load_config
from sipproxy.engine.actions import Action, SendTo, TakeSlot
from sipproxy.engine.settings import Rates
from sipproxy.engine.structs import Binding
from sipproxy.engine.targets import binding_groups
from sipproxy.neighbours import _peer, _row
from sipproxy.net.hep import write_hep
from sipproxy.net.passed import Passed
from sipproxy.sip.build import Editor, write_response
from sipproxy.sip.digest import parse_challenge, parse_credentials, verify, write_credentials
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import Flow
from sipproxy.sip.framing import StreamFramer
from sipproxy.sip.headers import parse_cseq, parse_name_addr, parse_via, split_commas
from sipproxy.sip.message import Request, check_message, parse_message, salvage
from sipproxy.sip.sdp import media_kinds
from sipproxy.sip.stun import answer, is_stun
from sipproxy.sip.uri import parse_uri, uris_equal
from sipproxy.store.live_slots import _read_holder
from sipproxy.store.nodes import _seen
from sipproxy.store.slots import _parsed
from sipproxy.store.wire import Wire
from tests.engine.desk import ROUTER, STRANGER, Desk
from tests.fuzz import seeds
from tests.sim.conftest import TRUNK_A, make_town, town_snapshot

__all__ = ["TARGETS", "Target"]

VIEWS = ("via", "vias", "from_", "to", "call_id", "cseq", "contacts", "routes", "record_routes", "max_forwards")
VIEWS += ("expires", "content_length", "body", "parsed_uri")
PLENTY = dict.fromkeys(
    ("source_per_s", "source_burst", "line_per_s", "line_burst", "strangers_per_s", "strangers_burst"), 10**9
)
PER_DESK = 200  # messages until the engine is a new one: what a finding needs is then near
NEXT = b"\xfe\xfe\xfe\xfe"  # between the messages of one input


class Target(NamedTuple):
    """`run` raises nothing, whatever it is given."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def message(data: bytes) -> None:
    """A datagram: parsed, every view looked at, copied, answered."""
    try:
        found = parse_message(data)
    except ParseError:
        rescued = salvage(data)
        if rescued is not None:
            rescued.stamp("192.0.2.1", 5060)
            with suppress(ParseError):
                write_response(rescued, 400, to_tag=b"t")
        return
    for view in VIEWS:
        with suppress(ParseError):
            getattr(found, view, None)
    for name in set(found.keys):
        with suppress(ParseError):
            found.values(name) if name else None
    media_kinds(found.body, found.first(b"content-type") or b"")
    try:
        check_message(found)
    except ParseError:
        return
    if found.version == b"SIP/2.0":
        assert Editor(found).to_bytes() == found.raw
    if isinstance(found, Request):
        found.stamp("192.0.2.1", 5060)
        parse_message(write_response(found, 400, to_tag=b"t"))


class _Engine:
    """One engine for some messages: a registered router, a trunk with a call on it, a stranger."""

    def __init__(self) -> None:
        self.used = PER_DESK
        self.flows: tuple[Flow, ...] = ()

    def __call__(self, data: bytes) -> None:
        if self.used >= PER_DESK:
            self.desk, self.used = Desk(make_town(rates=Rates(**PLENTY)).world.engine), 0
            assert self.desk.register(b"<sip:alice@203.0.113.1:5060>").status == 200
            self.flows = (ROUTER, STRANGER, Flow("UDP", 0, *TRUNK_A))
        desk = self.desk
        for part in data.split(NEXT)[:4]:
            self.used += 1
            flow = self.flows[part[:1][0] % 3] if part else STRANGER
            self._perform(desk.engine.receive(part[1:], flow, desk.now))
        desk.tick(0.6)
        self._perform(desk.engine.fire(desk.now))

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, SendTo):
                parse_message(action.data)  # what leaves is readable
            elif isinstance(action, TakeSlot):
                self._perform(self.desk.engine.slot_result(action.slot, taken=True, used=1, now=self.desk.now))


def uri(data: bytes) -> None:
    """A URI, an address, a Via, a list, a CSeq: whatever stands in a header."""
    for read in (parse_uri, parse_name_addr, parse_via, parse_cseq, split_commas):
        try:
            found = read(data)
        except ParseError:
            continue
        if read is parse_uri:
            assert uris_equal(found, found) or not found.is_sip
            found.host_text, found.param(b"transport"), found.param(b"lr")


def digest(data: bytes) -> None:
    """An Authorization value, and a challenge of a trunk's."""
    with suppress(ParseError):
        verify(parse_credentials(data), b"REGISTER", "0" * 32)
    try:
        challenge = parse_challenge(data)
    except ParseError:
        return
    with suppress(ValueError):
        write_credentials(challenge, method=b"INVITE", uri=b"sip:a@b", user="u", password="p", cnonce=b"0a4f113b", nc=1)


def framing(data: bytes) -> None:
    """A stream: the cut into chunks makes no difference, and what comes out is as long as it says."""
    whole, cut = StreamFramer(4096), StreamFramer(4096)
    once = _fed(whole, [data])
    step = 1 + len(data) % 7
    assert once == _fed(cut, [data[at : at + step] for at in range(0, len(data), step)])
    for item in once:
        if isinstance(item, bytes):
            with suppress(ParseError):
                assert parse_message(item).raw == item


def stun(data: bytes) -> None:
    """A datagram that is none of SIP's."""
    if is_stun(data):
        for host in ("192.0.2.1", "2001:db8::1"):
            response = answer(data, host, 5060)
            assert response is None or is_stun(response)


class _Registrations:
    """Header lines of a proven account's REGISTER from a proxy that may add a Path; then a call to what came of them."""

    def __init__(self) -> None:
        self._count = 0
        self._desk = self._new()

    @staticmethod
    def _new() -> Desk:
        town = make_town(path_sources=(ip_network(f"{ROUTER.host}/32"),), max_contacts=100)
        desk = Desk(town.world.engine)
        desk.engine.desk.now = desk.now
        return desk

    def __call__(self, data: bytes) -> None:
        self._count += 1
        if self._count % PER_DESK == 0:
            self._desk = self._new()
        desk, engine = self._desk, self._desk.engine
        raw = desk.request(cseq=self._count)
        try:
            request = parse_message(raw[:-2] + data + b"\r\n\r\n")
            check_message(request)
        except ParseError:
            return
        assert isinstance(request, Request)
        account = engine.desk.snapshot.accounts["alice"]
        engine._registrar.register(request, account, ROUTER)
        for group in binding_groups(engine.desk, "alice", "+4960323001"):
            assert all(parse_uri(target.uri).is_sip for target in group)


def _fed(framer: StreamFramer, chunks: list[bytes]) -> list[object]:
    found: list[object] = []
    for chunk in chunks:
        try:
            found += framer.feed(chunk)
        except ParseError:
            break
    return found


def sdp(data: bytes) -> None:
    """A body: never an error at all."""
    for kind in (b"application/sdp", b"multipart/mixed;boundary=x"):
        assert len(media_kinds(data, kind)) <= 4


_BINDINGS = msgspec.msgpack.Decoder(Binding).decode


def bindings(data: bytes) -> None:
    """A binding out of the store: read at the start, called, registered over."""
    try:
        binding = _BINDINGS(data)
    except (msgspec.MsgspecError, ValueError):  # as store.bindings
        return
    desk = Desk(make_town().world.engine)
    node = "n1" if len(data) % 2 else "n2"
    binding = msgspec.structs.replace(binding, node=node, expires_at_ms=desk.utc_ms + 10**6)
    desk.engine.bindings_read([("alice", binding)], desk.now, own_too=True)
    called = b"sip:+4960323001@sip.test"
    desk.receive(desk.request(b"INVITE", called, user=b"+493012345"), Flow("UDP", 0, *TRUNK_A))
    for action in desk.actions:
        if isinstance(action, TakeSlot):
            desk.engine.slot_result(action.slot, taken=True, used=1, now=desk.now)
    assert desk.register(b"<sip:alice@203.0.113.1:5060>").status in (200, 403, 500)
    desk.engine.binding_gone("alice", binding.key, desk.utc_ms, desk.now)
    desk.engine.expire_bindings(desk.now)


def policy(data: bytes) -> None:
    """A value of the policy tables: a snapshot made of it, a call decided by it."""
    town = town_snapshot()
    lines, accounts = dict(town.lines), dict(town.accounts)
    psap, blocks = [route for routes in town.psap.values() for route in routes], list(town.blocks)
    found = 0
    for decode in (policy_codec.decode_line, policy_codec.decode_account, policy_codec.decode_block, policy_codec.decode_psap):
        try:
            value = decode(data)
        except msgspec.DecodeError:
            continue
        found += 1
        if decode is policy_codec.decode_line:
            lines["L1"] = replace(value, id="L1", accounts=("alice", "andrea"))
        elif decode is policy_codec.decode_account:
            accounts["alice"] = replace(value, user="alice", line="L1")
        elif decode is policy_codec.decode_block:
            blocks.append(value)
        else:
            psap += value
    with suppress(msgspec.DecodeError):
        policy_codec.decode_owner(data)
    if found:
        made = snapshot_of(8, lines.values(), accounts.values(), town.profiles, psap, blocks)
        desk = Desk(make_town().world.engine)
        desk.engine.swap_snapshot(made, desk.now)
        for dialled in (b"sip:112@sip.test", b"sip:03023125001@sip.test"):
            desk.receive(desk.request(b"INVITE", dialled, user=b"alice"))
            evaluate(CallAttempt(Direction.OUTGOING, dialled, made.lines["L1"]), made, desk.utc_ms)


def store(data: bytes) -> None:
    """Replies of the server: slots, holders, heartbeats."""
    replies: list[object] = [data]
    wire = Wire(lambda _, found: replies.extend(found), lambda *_: None, lambda _: None)
    wire.data_received(data)
    for reply in replies:
        _parsed(reply, 0.0)
    _read_holder(data)
    parts = data.split(b"\n")
    seen = _seen(b"sp:node:n7", parts[: len(parts) // 2 * 2])
    if seen is not None:
        _peer(seen)
        _row(seen, 1_790_000_000_000, "up")


_WORK = Path(tempfile.mkdtemp(prefix="sipproxy-fuzz-"))


def journal(data: bytes) -> None:
    """A segment that something else wrote into; the calls that it shows as live, taken up again."""
    directory = _WORK / "journal"
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    (directory / file_name(0)).write_bytes(data)
    try:
        found = load_journal(directory, "n1")
    except JournalError:
        return
    desk = Desk(make_town().world.engine)
    desk.engine.recover(found.unfinished, desk.now)


def facts(data: bytes) -> None:
    """The payload of one frame with a right checksum, of any version: decoded, taken up again, delivered."""
    for read in (cdr_codec.decode, cdr_codec.scan, cdr_codec.head):
        with suppress(cdr_codec.CodecError):
            read(data)
    entry_of(b"1-1", {b"d": data, b"id": b"c1", b"v": b"1", b"type": b"final", b"node": b"n1", b"seq": b"1"})
    try:
        fact = cdr_codec.decode_fact(data)
    except cdr_codec.CodecError:
        return
    if isinstance(fact, Admit):
        desk = Desk(make_town().world.engine)
        desk.engine.recover([(fact, None, None)], desk.now)


def config(data: bytes) -> None:
    """A configuration file."""
    path = _WORK / "config.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        load_config(path)


def files(data: bytes) -> None:
    """Files of lines, emergency routes and block rules, as CSV and TOML."""
    text = data.decode("utf-8", "replace")
    for name in ("x.csv", "x.toml"):
        with suppress(PolicyError):
            parse.read_lines(text, file=name, realm="r", profiles=_PROFILES)
        with suppress(PolicyError):
            parse_rules.read_psap(text, file=name)
        with suppress(PolicyError):
            parse_rules.read_blocks(text, file=name, profiles=_PROFILES)


_PROFILES = profiles.load()


def capture(data: bytes) -> None:
    """A message on its way to a collector."""
    four, six = ("192.0.2.1", 5060), ("2001:db8::1", 5060)
    for source in (four, six):
        write_hep(Passed(1_790_000_000_000_000_000, True, "UDP", source, source, data), capture_id=1, password="x")


def _numbered(*facts: Admit | Answer | Alive | End) -> bytes:
    out = write_header(Header(0, 7, 0, 0, "n1"))
    position = 0
    for fact in facts:
        frame = write_frame(cdr_codec.encode_fact(fact), position, 7)
        out, position = out + frame, position + len(frame)
    return out


_ADMIT = Admit(Record(id="c1", node="n1", direction="outgoing", setup_at_ms=1_790_000_000_000, account="alice", line="L1"))
_ANSWER = Answer("c1", 1_790_000_001_000, 1000, 1_790_000_000_500, 200, "tt", "carrier-a", "", "", ["audio"])
_END = End(Record(id="c2", node="n1", seq=1, direction="outgoing", end_at_ms=1_790_000_002_000, end_reason="normal"))

TARGETS: dict[str, Target] = {
    "message": Target(message, seeds.MESSAGES),
    "engine": Target(
        _Engine(), tuple(b"\x00" + one for one in seeds.MESSAGES) + tuple(b"\x02" + one for one in seeds.MESSAGES)
    ),
    "uri": Target(uri, seeds.URIS),
    "digest": Target(digest, seeds.DIGESTS),
    "framing": Target(framing, (*seeds.MESSAGES, b"\r\n\r\n".join(seeds.MESSAGES))),
    "stun": Target(stun, seeds.STUN),
    "registration": Target(_Registrations(), seeds.REGISTRATIONS),
    "sdp": Target(sdp, seeds.BODIES),
    "bindings": Target(bindings, seeds.BINDINGS),
    "policy": Target(policy, seeds.policy_values(town_snapshot())),
    "store": Target(store, seeds.REPLIES),
    "journal": Target(journal, (_numbered(_ADMIT), _numbered(_ADMIT, _ANSWER, _END))),
    "facts": Target(facts, tuple(cdr_codec.encode_fact(fact) for fact in (_ADMIT, _ANSWER, _END))),
    "config": Target(config, seeds.CONFIGS),
    "files": Target(files, seeds.FILES),
    "capture": Target(capture, seeds.MESSAGES),
}
