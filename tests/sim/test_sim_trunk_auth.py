"""A carrier that asks for credentials: INVITE, requests within dialogs, BYEs of ours (RFC 3261 §22.2, §8.2.2.2, §12.2.2).

The carrier refuses nothing that it should refuse: what it would have refused is in its `faults`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from sipproxy.engine.core import Engine
from sipproxy.sip.digest import parse_credentials
from tests.sim.carrier import CARRIER_REALM, CREDENTIALS, PASSWORD, USER, Carrier, carrier_town
from tests.sim.conftest import town_snapshot
from tests.sim.restart import Restarts
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from tests.sim.agent import AgentCall
    from tests.sim.conftest import Town

NUMBER = b"03023125001"
ALL = frozenset([b"INVITE", b"BYE", b"UPDATE", b"INFO", b"PRACK"])


def asking_town(*asks: bytes, **route: object) -> tuple[Town, Carrier]:
    town = carrier_town(a={**CREDENTIALS, **route})
    first = cast("Carrier", town.trunk)
    first.asks = frozenset(asks) or ALL
    town.register_all()
    return town, first


def answered(town: Town) -> AgentCall:
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 200
    return call


def from_us(town: Town, method: bytes) -> list[bytes]:
    return [data for _, _, to, data in town.world.wire if to == town.trunk.address and data.startswith(method + b" ")]


@pytest.mark.parametrize("status", [401, 407])
def test_challenged_call_is_answered_and_ended_and_the_customer_sees_nothing_of_it(status: int) -> None:
    town, first = asking_town()
    first.challenge_status = status
    call = answered(town)
    town.world.run(10.0)
    town.alice.bye(call)
    town.world.run(2.0)
    assert first.faults == []
    assert [request.method for request in first.challenged] == [b"INVITE", b"BYE"]
    assert first.calls[0].acked
    assert first.calls[0].ended == "remote"
    seen = [r for r in town.alice.responses if r.call_id == call.call_id]
    challenges = [r.first(b"proxy-authenticate") or b"" for r in seen if r.status in (401, 407)]
    assert len(challenges) == 1, "that of ours alone"
    assert all(CARRIER_REALM.encode() not in value for value in challenges)
    assert {r.cseq.number for r in seen if r.status in (180, 200) and r.cseq.method == b"INVITE"} == {2}
    assert [r.cseq.number for r in seen if r.status == 200 and r.cseq.method == b"BYE"] == [3]
    (record,) = town.world.records
    assert (record.trunk, record.status, record.end_reason) == ("carrier-a", 200, "normal")
    town.assert_reconciled()


def test_challenge_is_no_failure_of_the_route_and_is_counted() -> None:
    town, _ = asking_town()
    answered(town)
    row = town.world.engine.desk.trunks.view()[0]
    assert (row["state"], row["last_failure"], row["calls"]) == ("up", "", 1)
    assert town.world.engine.desk.counters["trunk_challenges", "carrier-a", "answered"] == 1


def test_answer_to_a_challenge_counts_cseq_up_and_its_ack_repeats_number_and_credentials() -> None:
    """§22.2: CSeq is incremented; §22.1: the ACK has the credentials of its INVITE; §13.2.2.4: and its number."""
    town, _ = asking_town()
    answered(town)
    invites, acks = from_us(town, b"INVITE"), from_us(town, b"ACK")
    assert [b"CSeq: 2 INVITE" in invites[0], b"CSeq: 3 INVITE" in invites[-1]] == [True, True]
    assert b"CSeq: 2 ACK" in acks[0]
    assert b"CSeq: 3 ACK" in acks[-1]
    value = next(line for line in acks[-1].split(b"\r\n") if line.startswith(b"Proxy-Authorization: "))
    assert value in invites[-1]
    credentials = parse_credentials(value.partition(b": ")[2])
    assert (credentials.username, credentials.realm, credentials.qop) == (USER, CARRIER_REALM, "auth")


def test_requests_within_the_dialog_keep_ascending_numbers_through_many_challenges() -> None:
    town, first = asking_town()
    call = answered(town)
    statuses: list[int] = []
    for method in (b"UPDATE", b"INFO", b"UPDATE"):
        town.alice._in_dialog(call, method, lambda r: statuses.append(r.status if r is not None else 0))
        town.alice._flush()
        town.world.run(1.0)
        town.alice.reinvite(call, lambda r: statuses.append(r.status if r is not None and r.status >= 200 else 0))
        town.world.run(1.0)
    assert [status for status in statuses if status] == [200] * 6
    town.trunk.reinvite(first.calls[0], lambda r: statuses.append(r.status if r is not None else 0))
    town.world.run(1.0)
    town.alice.bye(call)
    town.world.run(2.0)
    assert first.faults == []
    assert first.calls[0].ended == "remote"
    assert len(first.challenged) == 8
    town.assert_reconciled()


def test_prack_names_the_number_that_the_carrier_gave_its_response() -> None:
    """RFC 3262 §7.2: RAck holds the CSeq of the INVITE as the UAS knows it."""
    town, first = asking_town(b"INVITE")
    first.behave = lambda call: first.progress(call, 183)
    call = town.alice.call(NUMBER)
    town.world.run(2.0)
    early = next(r for r in town.alice.responses if r.status == 183)
    call.remote_tag = early.to.tag or b""
    call.remote_target = early.contacts[0].uri.raw
    call.routes = [route.raw for route in reversed(early.record_routes)]
    branch = b"z9hG4bKprack1"
    assert call.invite is not None
    prack = (
        b"PRACK %s SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.1:5060;branch=%s;rport\r\nMax-Forwards: 70\r\n"
        b"From: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: 3 PRACK\r\nRAck: 1 %d INVITE\r\nRoute: %s\r\nContent-Length: 0\r\n\r\n"
    ) % (
        call.remote_target,
        branch,
        call.invite.first(b"from") or b"",
        early.first(b"to") or b"",
        call.call_id,
        early.cseq.number,
        b", ".join(call.routes),
    )
    town.world.send(prack, town.alice.address, PROXY)
    town.world.run(1.0)
    (seen,) = [request for request in first.requests if request.method == b"PRACK"]
    assert (seen.first(b"rack"), seen.cseq.number) == (b"1 3 INVITE", 4)
    assert first.faults == []


def test_bye_of_ours_is_answered_for_too() -> None:
    town = carrier_town(a=CREDENTIALS, maximum_s=60.0)
    first = cast("Carrier", town.trunk)
    first.asks = ALL
    town.register_all()
    call = answered(town)
    town.world.run(70.0)
    assert (call.ended, first.calls[0].ended) == ("remote", "remote")
    assert first.faults == []
    assert [r.end_reason for r in town.world.records] == ["maximum"]


def test_call_from_the_carrier_is_ended_by_the_customer_against_a_challenge() -> None:
    town, first = asking_town(b"BYE", b"INVITE")
    call = first.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 200
    statuses: list[int] = []
    town.bob.reinvite(town.bob.calls[0], lambda r: statuses.append(r.status if r is not None and r.status >= 200 else 0))
    town.world.run(2.0)
    town.bob.bye(town.bob.calls[0])
    town.world.run(2.0)
    assert statuses[-1] == 200
    assert call.ended == "remote"
    assert [request.method for request in first.challenged] == [b"INVITE", b"BYE"]
    town.assert_reconciled()


def test_stale_nonce_is_answered_once_more() -> None:
    """RFC 7616 §3.3."""
    town, first = asking_town(b"INVITE")
    first.stale = 1
    call = answered(town)
    assert first.faults == []
    assert len(first.calls) == 1
    assert len(first.challenged) == 2
    assert from_us(town, b"INVITE")[-1].count(b"Proxy-Authorization: ") == 1
    assert b"CSeq: 4 ACK" in from_us(town, b"ACK")[-1]
    town.alice.bye(call)
    town.world.run(1.0)
    town.assert_reconciled()


def test_nonce_that_is_stale_for_ever_is_not_answered_for_ever() -> None:
    town, first = asking_town(b"INVITE")
    first.stale = 100
    answered(town)
    assert (len(first.calls), len(town.trunk_b.calls)) == (0, 1)
    assert len(first.challenged) == 3


def test_challenges_that_nobody_can_answer_are_passed_over_for_one_that_the_route_can() -> None:
    town, first = asking_town(b"INVITE")
    first.also = (
        (b"Proxy-Authenticate", b'Basic realm="x"'),
        (b"Proxy-Authenticate", b'Digest realm="x", nonce="y", algorithm=ODD'),
    )
    answered(town)
    assert len(first.calls) == 1


def test_challenge_over_a_stream_is_answered_though_its_transaction_is_gone() -> None:
    """§17.1.1.2: Timer D is zero over a reliable transport."""
    town = carrier_town(a=CREDENTIALS)
    first, world = cast("Carrier", town.trunk), town.world
    first.asks = ALL
    (udp,) = world.settings.listeners
    world.streams.add(first.address)
    route = world.settings.trunks[0]
    world.settings = replace(
        world.settings,
        listeners=(udp, replace(udp, index=1, transport="TCP")),
        trunks=(replace(route, hop=route.hop._replace(transport="TCP")), world.settings.trunks[1]),
    )
    world.engine = Engine(world.settings, town_snapshot(), new_token=world.random.randbytes, key=b"k" * 32)
    town.register_all()
    call = answered(town)
    town.alice.bye(call)
    town.world.run(2.0)
    assert b"SIP/2.0/TCP" in from_us(town, b"INVITE")[0]
    assert first.faults == []
    assert first.calls[0].ended == "remote"


@pytest.mark.parametrize("route", [{"password": "wrong"}, {"realm": "another.test"}])
def test_credentials_that_are_refused_try_the_next_route_and_are_told_to_the_operator(route: dict[str, object]) -> None:
    town, first = asking_town(**route)
    answered(town)
    assert len(town.trunk_b.calls) == 1
    assert first.calls == []
    row = town.world.engine.desk.trunks.view()[0]
    assert (row["last_failure"], row["state"], row["calls"]) == ("credentials", "up", 0)
    assert [note.level for note in town.world.notes if note.event == "trunk_credentials_refused"] == ["error"]
    assert len(first.challenged) <= 2


def test_challenge_of_every_route_ends_in_500_and_never_reaches_the_customer() -> None:
    town = carrier_town(a={**CREDENTIALS, "password": "wrong"}, b={**CREDENTIALS, "password": "wrong"})
    for agent in (town.trunk, town.trunk_b):
        cast("Carrier", agent).asks = ALL
    town.register_all()
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 500
    assert call.final is not None
    assert not call.final.has(b"proxy-authenticate")
    town.assert_reconciled()


def test_challenge_within_a_dialog_that_cannot_be_answered_is_500_for_its_sender() -> None:
    town, first = asking_town(b"INVITE")
    call = answered(town)
    first.asks = frozenset([b"INFO"])
    town.world.engine.desk.trunks._routes["carrier-a"].route = town.world.settings.trunks[0].__class__(
        "carrier-a", town.world.settings.trunks[0].hop, (), user=USER, password="wrong"
    )
    statuses: list[int] = []
    town.alice._in_dialog(call, b"INFO", lambda r: statuses.append(r.status if r is not None else 0))
    town.alice._flush()
    town.world.run(2.0)
    assert statuses == [500]


def test_route_without_credentials_passes_the_challenge_on() -> None:
    town = carrier_town()
    cast("Carrier", town.trunk).asks = ALL
    town.register_all()
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 407
    assert CARRIER_REALM.encode() in (call.final.first(b"proxy-authenticate") or b"" if call.final is not None else b"")


def test_cancel_after_the_challenge_goes_to_the_request_that_was_sent_again() -> None:
    town, first = asking_town(b"INVITE")
    first.behave = lambda call: first.progress(call, 180)
    call = town.alice.call(NUMBER)
    town.world.run(2.0)
    town.alice.cancel(call)
    town.world.run(2.0)
    assert call.status == 487
    assert first.calls[0].status == 487
    assert first.faults == []
    town.world.run(60.0)
    assert town.world.engine.desk.trunks.view()[0]["calls"] == 0
    town.assert_reconciled()


def test_cancel_that_meets_the_challenge_ends_the_call_without_an_answer_to_it() -> None:
    town, first = asking_town(b"INVITE")
    call = town.alice.call(NUMBER)
    town.world.run_until(lambda: bool(first.challenged))
    town.world.run_until(lambda: bool(call.provisional))
    before = len(from_us(town, b"INVITE"))
    town.world.engine.calls.by_id[next(iter(town.world.engine.calls.by_id))].cancel()
    town.world.run(40.0)
    assert call.status == 487
    assert len(from_us(town, b"INVITE")) <= before + 1
    town.assert_reconciled()


@pytest.mark.parametrize("seed", range(8))
def test_challenged_calls_over_a_lossy_wire_reconcile_in_order(seed: int) -> None:
    town = carrier_town(seed=seed, a=CREDENTIALS, loss=0.12, duplicate=0.1)
    first = cast("Carrier", town.trunk)
    first.asks = ALL
    for agent in (town.alice, town.bob):
        agent.register()
    town.world.run(40.0)
    chance = town.world.random
    for _ in range(10):
        caller = chance.choice([town.alice, town.bob])
        call = caller.call(NUMBER)
        town.world.run(chance.uniform(0.5, 8.0))
        if call.status == 200 and chance.random() < 0.5:
            caller.reinvite(call, lambda _: None)
            town.world.run(3.0)
        caller.cancel(call)
        caller.bye(call)
    town.world.run(200.0)
    for caller in (town.alice, town.bob):
        for call in caller.calls:
            caller.bye(call)
    town.world.run(100.0)
    assert [fault for fault in first.faults if "CANCEL" not in fault and "ACK" not in fault] == []
    town.assert_reconciled()


def test_secrets_stand_in_no_note_no_view_and_no_text_of_the_settings() -> None:
    town, _ = asking_town(password=PASSWORD)
    answered(town)
    world = town.world
    shown = repr(world.notes) + repr(world.engine.desk.trunks.view()) + repr(world.settings) + repr(world.facts)
    assert PASSWORD not in shown
    assert PASSWORD.encode() not in b"".join(data for *_, data in town.world.wire)


def test_restart_keeps_the_numbers_that_the_carrier_knows_and_the_places_on_its_route() -> None:
    town = carrier_town(a={**CREDENTIALS, "calls": 5}, boot="boot-1")
    first = cast("Carrier", town.trunk)
    first.asks = frozenset([b"INVITE", b"INFO", b"BYE"])
    town.register_all()
    node = Restarts(town.world)
    call = answered(town)
    town.alice._in_dialog(call, b"INFO")
    town.alice._flush()
    town.world.run(1.0)
    node.kill()
    town.world.run(3.0)
    node.start()
    assert town.world.engine.desk.trunks.view()[0]["calls"] == 1
    town.world.run(2.0)
    town.alice.bye(call)
    town.world.run(2.0)
    assert first.calls[0].ended == "remote"
    assert [fault for fault in first.faults if "OPTIONS" not in fault] == []
    assert town.world.engine.desk.trunks.view()[0]["calls"] == 0
    town.assert_reconciled()
