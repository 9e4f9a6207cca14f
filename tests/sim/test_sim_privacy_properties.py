"""Design, invariant 11: with CLIR set, nothing that leaves for a customer holds the caller's number, over random calls.

A sniffer on the virtual wire looks at every datagram to every customer but the caller himself, in any spelling of the number.
What a proxy may not change is not looked at: Call-ID, and bodies (RFC 3261 §16.6), which hold no number here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.conftest import PSAP, Town, make_town
from tests.sim.world import PROXY, Address

if TYPE_CHECKING:
    from tests.sim.agent import Agent, AgentCall

OWN = "+4960323001"  # alice's
STRANGER = "+4989123456"  # a caller's in the public network
HIDES = ("id", "header", "user", "id;critical", "ID ; History", "anonymous", "*31#", "line")
BEFORE_ANSWER = ("cancel", "busy", "decline", "unavailable", "silence")
PARTIES = ("caller", "callee")
AFTER_ANSWER = (*PARTIES, "proxy")  # the longest duration, which emergency calls do not have
METHODS = (b"INVITE", b"UPDATE", b"INFO", b"OPTIONS")


def spellings(number: str) -> list[bytes]:
    """The number as peers write it."""
    national = number.removeprefix("+49")
    digits = number[1:].encode()
    escaped = b"".join(b"%%%02X" % byte for byte in digits)
    return [number.encode(), b"0049" + national.encode(), b"0" + national.encode(), digits, escaped, b"+49 (0)%s-%s" % (
        national[:4].encode(), national[4:].encode())]  # fmt: skip


def chatter(number: str) -> list[tuple[bytes, bytes]]:
    """Header lines that name the caller: those that networks know, odd case, compact forms, and what nobody ever heard of."""
    plus, zeros, zero, digits, escaped, spaced = spellings(number)
    return [
        (b"P-Asserted-Identity", b"<sip:%s@sip.test>, <tel:%s>" % (plus, plus)),
        (b"p-PREFERRED-identity", b"<sip:%s@sip.test>" % zeros),
        (b"Remote-Party-ID", b"<sip:%s@sip.test>;privacy=off" % zero),
        (b"DIVERSION", b"<sip:%s@sip.test>" % digits),
        (b"History-Info", b"<sip:%s@sip.test>;index=1" % escaped),
        (b"b", b"<sip:%s@sip.test>" % plus),
        (b"y", b"eyJ.%s" % digits),
        (b"Reply-To", b"\"%s\" <sip:%s@sip.test>" % (spaced, plus)),
        (b"Call-Info", b"<http://sip.test/%s>" % digits),
        (b"X-Caller", spaced),
        (b"x-eScApEd", escaped),
        (b"s", b"call of %s" % spaced),
        (b"User-Agent", b"Box/%s" % digits),
    ]  # fmt: skip


@dataclass
class Sniffer:
    """Datagrams to customers but the caller, since `begin`."""

    town: Town
    number: str
    caller: Address | None
    begin: int = 0

    def seen(self) -> list[bytes]:
        customers = {a.address for a in (self.town.alice, self.town.andrea, self.town.bob)} - {self.caller}
        return [d for _, source, to, d in self.town.world.wire[self.begin :] if source == PROXY and to in customers]

    def assert_nothing_told(self) -> None:
        for data in self.seen():
            head = data.partition(b"\r\n\r\n")[0]
            plain = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), head)
            plain = b"\r\n".join(line for line in plain.split(b"\r\n") if not line.lower().startswith((b"call-id:", b"i:")))
            plain = plain.translate(None, b" -.()/")
            assert self.number.removeprefix("+49").encode() not in plain, data.decode("latin-1")


def caller_headers(way: str) -> tuple[tuple[bytes, bytes], ...]:
    return () if way in ("anonymous", "*31#", "line") else ((b"Privacy", way.encode()),)


def begin_call(town: Town, agent: Agent, target: str, way: str, number: str) -> AgentCall:
    prefix = "*31#" if way == "*31#" else ""
    user = "anonymous" if way == "anonymous" else number
    headers = (*caller_headers(way), *chatter(number))
    if way == "anonymous":
        headers = (*headers, (b"Contact", b"<sip:%s@%s>" % (number.encode(), agent._sent_by)))
    return agent.call((prefix + target).replace("#", "%23").encode(), headers=headers, from_user=user)


def behave(town: Town, callees: list[Agent], outcome: str) -> None:
    status = {"busy": 486, "decline": 603, "unavailable": 480}
    for agent in callees:
        if outcome in status:
            agent.behave = lambda call, agent=agent: agent.reject(call, status[outcome])  # type: ignore[misc]
        elif outcome in ("cancel", "silence"):
            agent.behave = lambda call, agent=agent: agent.progress(call, 180)  # type: ignore[misc]


def status_of(town: Town, agent: Agent, call: AgentCall, method: bytes) -> int:
    """The final status that a request within the dialog gets."""
    seen: list[int] = []

    def answered(response: Response | None) -> None:
        seen.append(response.status if response is not None else 0)

    if method == b"INVITE":
        agent.reinvite(call, answered)
    else:
        agent._in_dialog(call, method, answered)
    town.world.run(1.0)
    return seen[-1] if seen else 0


def talk(town: Town, caller: Agent, callee: Agent, call: AgentCall, steps: list[tuple[bool, bytes]], end: str) -> None:
    """Requests within the dialog, both ways, each of which must arrive and be answered; then its end."""
    far = next(c for c in callee.calls if c.status == 200)
    for by_caller, method in steps:
        agent, own = (caller, call) if by_caller else (callee, far)
        assert status_of(town, agent, own, method) == 200, (by_caller, method)
    if end == "proxy":
        town.world.run(town.world.settings.maximum_s + 5.0)
    else:
        (caller if end == "caller" else callee).bye(call if end == "caller" else far)
        town.world.run(2.0)
    assert (call.ended, far.ended) == {
        "caller": ("local", "remote"),
        "callee": ("remote", "local"),
        "proxy": ("remote", "remote"),
    }[end]


steps_of = st.lists(st.tuples(st.booleans(), st.sampled_from(METHODS)), max_size=4)
outcomes = st.sampled_from([*BEFORE_ANSWER, *AFTER_ANSWER, *AFTER_ANSWER])
SLOW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def prepared(seed: int, way: str) -> Town:
    fields: dict[str, object] = {"channels": 5, "clir": way == "line"}
    town = make_town(seed=seed, line_fields=fields, ring_s=20.0, maximum_s=60.0, duplicate=0.2 * (seed % 2))
    town.register_all()
    return town


def finish(town: Town, caller: Agent, callee: Agent, call: AgentCall, outcome: str, steps: list[tuple[bool, bytes]]) -> None:
    if outcome == "cancel":
        town.world.run(1.0)
        caller.cancel(call)
    town.world.run(3.0)
    if outcome in AFTER_ANSWER:
        assert call.status == 200
        talk(town, caller, callee, call, steps, outcome)
    else:
        town.world.run(30.0)
        assert call.status >= 400
    town.assert_reconciled()


@SLOW
@given(st.integers(0, 2**32), st.sampled_from(HIDES), outcomes, steps_of, st.booleans())
def test_internal_call_with_clir_tells_the_callee_nothing(
    seed: int, way: str, outcome: str, steps: list[tuple[bool, bytes]], forked: bool
) -> None:
    town = prepared(seed, way)
    town.alice.chatter, town.alice.contact_user = chatter(OWN), OWN
    callees = [town.bob]
    if forked and outcome not in AFTER_ANSWER:
        second = town.second_device()
        callees.append(second)
    behave(town, callees, outcome)
    call = begin_call(town, town.alice, "020514001", way, OWN)
    finish(town, town.alice, town.bob, call, outcome, steps)
    sniffer = Sniffer(town, OWN, town.alice.address)
    assert any(data.startswith(b"INVITE") for data in sniffer.seen())
    sniffer.assert_nothing_told()
    (record,) = town.world.records
    assert (record.calling, record.callee_line) == (OWN, "L2")


@SLOW
@given(st.integers(0, 2**32), st.sampled_from([way for way in HIDES if way not in ("*31#", "line")]), outcomes, steps_of)
def test_incoming_call_with_clir_tells_the_callee_nothing(
    seed: int, way: str, outcome: str, steps: list[tuple[bool, bytes]]
) -> None:
    town = prepared(seed, way)
    town.trunk.chatter, town.trunk.contact_user = chatter(STRANGER), STRANGER
    behave(town, [town.bob], outcome)
    call = begin_call(town, town.trunk, "+4920514001", way, STRANGER)
    finish(town, town.trunk, town.bob, call, outcome, steps)
    sniffer = Sniffer(town, STRANGER, None)
    assert any(data.startswith(b"INVITE") for data in sniffer.seen())
    sniffer.assert_nothing_told()
    (record,) = town.world.records
    assert STRANGER[3:] not in f"{record.calling} {record.presented} {record.diversions}", "TDDDG § 9(1)"
    assert not any(STRANGER[3:] in repr(note) for note in town.world.notes)


@SLOW
@given(st.integers(0, 2**32), st.sampled_from(HIDES), st.sampled_from(["110", "112"]), steps_of, st.sampled_from(PARTIES))
def test_emergency_call_shows_the_psap_the_number_and_its_call_back_may_hide(
    seed: int, way: str, service: str, steps: list[tuple[bool, bytes]], end: str
) -> None:
    town = prepared(seed, way)
    town.alice.chatter, town.alice.contact_user = chatter(OWN), OWN
    call = begin_call(town, town.alice, service, way, OWN)
    town.world.run(4.0)
    invite = town.psap.calls[0].invite
    assert invite is not None
    assert not invite.has(b"privacy")
    assert invite.lines(b"p-asserted-identity") == [b"<sip:+4960323001@sip.test;user=phone>"]
    assert (invite.from_.uri.user or b"").removeprefix(b"+49") == b"60323001"
    talk(town, town.alice, town.psap, call, steps, end)
    Sniffer(town, OWN, town.alice.address).assert_nothing_told()
    begin = len(town.world.wire)
    town.trunk.chatter = chatter(STRANGER)
    back = begin_call(town, town.trunk, OWN, "id", STRANGER)
    town.world.run(4.0)
    assert back.status == 200
    town.alice.bye(town.alice.calls[-1])
    town.world.run(2.0)
    Sniffer(town, STRANGER, None, begin).assert_nothing_told()


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_hidden_caller_is_himself_again_in_what_he_gets(by: str) -> None:
    """RFC 3323 §5, RFC 3261 §12.2.1.1: what was rewritten one way is put back the other way, Request-URI included."""
    town = prepared(1, "id")
    town.alice.contact_user = OWN
    call = begin_call(town, town.alice, "020514001", "id", OWN)
    town.world.run(3.0)
    far = town.bob.calls[0]
    assert far.invite is not None
    assert far.invite.from_.uri.raw == b"sip:anonymous@anonymous.invalid"
    assert far.invite.from_.tag == call.local_tag
    assert far.remote_target == b"sip:anonymous@192.0.2.1:5060"
    assert far.invite.lines(b"privacy") == [b"id"]
    assert call.final is not None
    assert call.final.from_.uri.raw == b"sip:+4960323001@sip.test"
    if by == "caller":
        town.alice.bye(call)
        town.world.run(1.0)
        bye = town.bob.requests[-1]
        assert bye.from_.uri.raw == b"sip:anonymous@anonymous.invalid"
    else:
        town.bob.bye(far)
        town.world.run(1.0)
        bye = town.alice.requests[-1]
        assert bye.uri == b"sip:+4960323001@203.0.113.1:5060"
        assert (bye.to.uri.raw, bye.to.tag) == (b"sip:+4960323001@sip.test", call.local_tag)
        answer = [r for r in town.bob.responses if r.cseq.method == b"BYE"][-1]
        assert answer.to.uri.raw == b"sip:anonymous@anonymous.invalid"
    assert bye.method == b"BYE"


def test_caller_who_asks_for_header_privacy_leaves_no_via(town: Town) -> None:
    """RFC 3323 §5.1: the Via lines of the caller are ours to keep, and to put back into the responses."""
    town.register_all()
    call = town.alice.call(b"020514001", headers=((b"Privacy", b"header;id"),))
    town.world.run(3.0)
    invite = next(parse_message(d) for _, s, to, d in town.world.wire if to == town.bob.address and d.startswith(b"INVITE"))
    assert isinstance(invite, Request)
    assert [via.host for via in invite.vias] == [b"192.0.2.1"]
    assert call.status == 200
    town.alice.bye(call)
    town.world.run(1.0)
    assert town.bob.calls[0].ended == "remote"
    assert [via.host for via in town.bob.requests[-1].vias] == [b"192.0.2.1"]
    assert PSAP not in {to for _, _, to, _ in town.world.wire}


def hidden_call(town: Town) -> AgentCall:
    call = begin_call(town, town.alice, "020514001", "id", OWN)
    town.world.run(3.0)
    return call


def test_callee_that_drops_record_route_reaches_the_hidden_caller_by_the_contact_it_was_given() -> None:
    town = prepared(1, "id")
    call = hidden_call(town)
    far = town.bob.calls[0]
    far.routes = []
    town.bob.bye(far)
    town.world.run(1.0)
    assert call.ended == "remote"
    assert town.alice.requests[-1].uri == b"sip:+4960323001@203.0.113.1:5060"


def test_early_request_of_the_callee_reaches_the_hidden_caller() -> None:
    """RFC 3311 §5: UPDATE before the answer."""
    town = prepared(1, "id")
    town.bob.behave = lambda call: town.bob.progress(call, 183)
    town.alice.chatter = chatter(OWN)
    call = hidden_call(town)
    call.remote_tag = town.bob.calls[0].local_tag
    town.alice.by_call_id[call.call_id, call.local_tag] = call
    assert status_of(town, town.bob, town.bob.calls[0], b"UPDATE") == 200
    update = town.alice.requests[-1]
    assert (update.method, update.uri) == (b"UPDATE", b"sip:+4960323001@203.0.113.1:5060")
    Sniffer(town, OWN, town.alice.address).assert_nothing_told()


def test_new_contact_of_the_hidden_caller_is_where_the_callees_requests_go() -> None:
    """RFC 3261 §12.2: a target refresh, of which the callee sees nothing."""
    town = prepared(1, "id")
    call = hidden_call(town)
    town.alice.contact_user = "new"
    assert status_of(town, town.alice, call, b"INVITE") == 200
    town.bob.bye(town.bob.calls[0])
    town.world.run(1.0)
    assert town.alice.requests[-1].uri == b"sip:new@203.0.113.1:5060"
    assert call.ended == "remote"


def test_bye_of_ours_names_the_hidden_caller_to_himself_alone() -> None:
    town = prepared(1, "id")
    hidden_call(town)
    town.world.run(70.0)
    mine, theirs = town.alice.requests[-1], town.bob.requests[-1]
    assert (mine.method, theirs.method) == (b"BYE", b"BYE")
    assert (mine.to.uri.user, theirs.from_.uri.user) == (OWN.encode(), b"anonymous")
    assert mine.uri == b"sip:+4960323001@203.0.113.1:5060"


def test_self_made_privacy_of_a_trunks_later_request_is_kept(town: Town) -> None:
    """RFC 3325 §7: a request within the dialog may ask for privacy by itself; RFC 7044 §10.1.2: or for its history's."""
    town.register_all()
    call = town.trunk.call(b"+4920514001", from_user=STRANGER)
    town.world.run(3.0)
    for privacy, gone in ((b"id", True), (b"history", True), (b"none", False)):
        town.trunk.chatter = [(b"Privacy", privacy), (b"History-Info", b"<sip:+4930999@c.example>;index=1")]
        assert status_of(town, town.trunk, call, b"INFO") == 200
        assert town.bob.requests[-1].has(b"history-info") is not gone
