"""Whom the kernel is asked to drop, and whom never ([kernel] drop; design: invariant 1)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from sipproxy.engine.actions import DropSource, Note, SpareSource
from sipproxy.engine.crew import Dropped, Spared, Word
from sipproxy.engine.drops import HELPED_S, LEAST_S
from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import DropRules, Rates
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Response
from sipproxy.sip.places import Place
from tests.engine.desk import ROUTER, STRANGER, Desk
from tests.sim.conftest import PSAP, TRUNK_A, make_town

RULES = DropRules("on", offences=20, window_s=60, drop_s=300, entries=3, allow=(ipaddress.ip_network("192.0.2.128/25"),))
CONTACT = b"<sip:alice@203.0.113.1:5060>"
SCAN = ((b"User-Agent", b"friendly-scanner"),)


def desk_of(rules: DropRules = RULES, **options: object) -> Desk:
    return Desk(make_town(drops=rules, **options).world.engine)


def flow_at(host: str) -> Flow:
    return Flow("UDP", 0, host, 5060)


def scan(desk: Desk, flow: Flow = STRANGER, *, count: int = 40, seconds: float = 10.0) -> list[DropSource]:
    """What the kernel is asked to drop while a scanner sends so many messages in so many seconds."""
    asked = []
    for _ in range(count):
        desk.receive(desk.request(b"OPTIONS", headers=SCAN), flow)
        asked += [action for action in desk.actions if isinstance(action, DropSource)]
        desk.tick(seconds / count)
    return asked


def sources(desk: Desk) -> list[str]:
    rows = desk.engine.desk.drops.view()["drops"]
    assert isinstance(rows, list)
    return [row["source"] for row in rows]


def fire(desk: Desk) -> list[SpareSource]:
    desk.actions = desk.engine.fire(desk.now)
    return [action for action in desk.actions if isinstance(action, SpareSource)]


def test_a_scanner_is_dropped_once_for_the_configured_time() -> None:
    desk = desk_of()
    assert scan(desk, count=200, seconds=50.0) == [DropSource("203.0.113.99", 300)]
    assert sources(desk) == ["203.0.113.99"]
    assert desk.engine.desk.counters["drops", "scan"] == 1
    desk.tick(301.0)
    assert fire(desk) == [], "the kernel ends it by itself"
    assert sources(desk) == []


def test_an_address_within_an_ipv6_64_is_dropped_with_the_whole_64() -> None:
    desk = desk_of()
    assert scan(desk, flow_at("2001:db8:1:2::77")) == [DropSource("2001:db8:1:2::/64", 300)]


def test_many_messages_in_a_moment_drop_nobody() -> None:
    """All routers behind one address come at once when the power is back."""
    assert scan(desk_of(), count=1000, seconds=LEAST_S - 0.1) == []


def test_offences_wear_off() -> None:
    assert scan(desk_of(), count=200, seconds=60.0 * 200 / 19) == []


def test_a_flood_beyond_the_budget_of_its_source_is_dropped() -> None:
    desk = desk_of(rates=Rates(source_per_s=1, source_burst=5, strangers_burst=1_000_000))
    asked = []
    for _ in range(60):
        desk.receive(desk.request(b"REGISTER"), STRANGER)
        asked += [action for action in desk.actions if isinstance(action, DropSource)]
        desk.tick(0.2)
    assert asked == [DropSource("203.0.113.99", 300)]
    assert desk.engine.desk.counters["drops", "flood"] == 1


def test_who_guesses_on_and_on_is_dropped() -> None:
    desk = desk_of()
    asked = []
    for _ in range(60):
        value = desk.credentials(b"REGISTER", b"sip:sip.test", password="wrong", flow=STRANGER)
        desk.receive(desk.request(headers=(value,)), STRANGER)
        asked += [action for action in desk.actions if isinstance(action, DropSource)]
        if asked:
            break
        desk.tick(0.5)
    assert asked == [DropSource("203.0.113.99", 300)]
    assert desk.engine.desk.counters["drops", "guesses"] == 1


def bound(desk: Desk) -> Flow:
    assert desk.register(CONTACT).status == 200
    return replace_port(ROUTER)


def replace_port(flow: Flow) -> Flow:
    return flow._replace(port=6060)  # another program behind the customer's address


def helped(desk: Desk) -> Flow:
    desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", headers=((b"Contact", CONTACT),)), STRANGER)
    return STRANGER


def neighbour(desk: Desk) -> Flow:
    desk.engine.peers_seen([Peer("n2", (Hop("UDP", "203.0.113.99", 5060),), frozenset(["203.0.113.99"]))])
    return STRANGER


def proven(desk: Desk) -> Flow:
    assert desk.register(CONTACT, flow=STRANGER).status == 200
    assert desk.register(CONTACT, flow=STRANGER, expires=0, call_id=b"call-1").status == 200
    return STRANGER


def live_call(desk: Desk) -> Flow:
    flow = flow_at("203.0.113.50")
    headers = (desk.credentials(b"INVITE", b"sip:112@sip.test", flow=flow), (b"Contact", CONTACT))
    answers = desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", headers=headers), flow)
    assert not [message for message in answers if isinstance(message, Response) and message.status > 100]
    desk.engine.auth.guesses._proven_at.clear()  # it is the call that counts
    desk.engine.desk.drops._suspects.clear()
    return flow


PROTECTED = {
    "binding": bound,
    "called_for_help": helped,
    "node": neighbour,
    "proven": proven,
    "access_network": lambda _: flow_at("198.18.0.5"),
    "allowed": lambda _: flow_at("192.0.2.200"),
    "psap": lambda _: flow_at(PSAP[0]),
    "own": lambda _: flow_at("192.0.2.1"),
}


@pytest.mark.parametrize("why", PROTECTED)
def test_who_may_be_a_customer_or_a_carrier_is_never_dropped(why: str) -> None:
    desk = desk_of(access_networks=(ipaddress.ip_network("198.18.0.0/24"),))
    flow = PROTECTED[why](desk)
    desk.tick(HELPED_S / 2)
    desk.utc_ms -= round(500 * HELPED_S)  # bindings live on
    assert scan(desk, flow, count=200) == []
    if why not in ("node",):  # whose messages are not looked at at all
        assert desk.engine.desk.counters["drops_spared", why] > 0
    refusal = desk.engine.desk.drops.add(flow.host, 60, why="test", by="somebody")
    assert ("never dropped" in refusal) is (why != "called_for_help"), "an operator knows what he does"


@pytest.mark.parametrize("why", ["binding", "called_for_help", "proven"])
def test_what_speaks_for_a_source_at_one_worker_keeps_the_others_from_dropping_it(why: str) -> None:
    """Design: invariant 1. A node's messages are spread over its workers, those of one source too."""
    desk, other = desk_of(worker=1), desk_of(worker=2)
    words: list[tuple[Desk, Word]] = []
    desk.engine.crew.tell = lambda word: words.append((other, word))
    other.engine.crew.tell = lambda word: words.append((desk, word))
    flow = PROTECTED[why](desk)
    asked: list[DropSource | SpareSource] = list(scan(other, flow, count=20))
    while words:
        hearer, word = words.pop(0)
        asked += [one for one in hearer.engine.crew.hear(word, hearer.now) if isinstance(one, DropSource | SpareSource)]
    asked += scan(other, flow, count=20, seconds=LEAST_S)
    for hearer, word in words:
        asked += [one for one in hearer.engine.crew.hear(word, hearer.now) if isinstance(one, DropSource | SpareSource)]
    assert sources(desk) == sources(other) == []
    assert [type(one) for one in asked] in ([], [DropSource, SpareSource])


def joined(desk: Desk, other: Desk) -> tuple[list[Word], list[Word]]:
    """What each of two workers tells, for a test to deliver."""
    said: tuple[list[Word], list[Word]] = ([], [])
    for worker, words in zip((desk, other), said, strict=True):
        worker.engine.crew.tell = words.append
    return said


@pytest.mark.parametrize("by", ["node", "somebody"])
@pytest.mark.parametrize("why", ["binding", "called_for_help", "call", "proven"])
def test_source_that_a_worker_drops_is_let_through_again_by_what_another_one_knows(why: str, by: str) -> None:
    """Design: invariant 1. What speaks for it was not told ahead, or is still on its way: the kernel was asked already."""
    desk, other = desk_of(worker=1), desk_of(worker=2)
    flow = live_call(desk) if why == "call" else PROTECTED[why](desk)
    said, heard = joined(desk, other)
    if by == "node":
        assert scan(other, flow, seconds=2 * LEAST_S) == [DropSource(flow.host, 300)]
    else:
        assert other.engine.desk.drops.add(flow.host, 60, why="test", by=by) == ""
        other.engine.desk.take_actions()
    assert (sources(other), heard) == ([flow.host], [Dropped(flow.host, by)])
    assert desk.engine.crew.hear(heard[0], desk.now) == []
    if by == "somebody" and why == "called_for_help":
        assert said == [], "an operator knows what he does"
        return
    assert said == [Spared(flow.host, why)]
    acted = other.engine.crew.hear(said[0], other.now)
    assert [one for one in acted if not isinstance(one, Note)] == [SpareSource(flow.host)]
    assert sources(other) == []
    assert other.engine.desk.counters["drops_ended", why] == 1
    assert len(heard) == 1, "the others have not dropped it"


def test_source_that_nothing_speaks_for_at_another_worker_stays_dropped_and_a_late_word_changes_nothing() -> None:
    desk, other = desk_of(worker=1), desk_of(worker=2)
    said, heard = joined(desk, other)
    assert scan(other) == [DropSource(STRANGER.host, 300)]
    desk.engine.crew.hear(heard[0], desk.now)
    assert (said, sources(other)) == ([], [STRANGER.host])
    assert other.engine.crew.hear(Spared("198.51.100.1", "call"), other.now) == []  # not on the list, or no more
    assert sources(other) == [STRANGER.host]


def test_an_operator_drops_whom_only_a_call_for_help_at_another_worker_speaks_for() -> None:
    desk, other = desk_of(worker=1), desk_of(worker=2)
    flow = helped(desk)
    assert other.engine.desk.drops.add(flow.host, 60, why="test", by="somebody") == ""
    words: list[Word] = []
    desk.engine.crew.tell = words.append
    desk.engine.crew.hear(Dropped(flow.host, "somebody"), desk.now)
    assert words == []


@pytest.mark.parametrize("host", [TRUNK_A[0], "127.0.0.1"])
def test_trunks_and_the_machine_itself_are_never_dropped(host: str) -> None:
    desk = desk_of()
    assert scan(desk, flow_at(host), count=200) == []
    assert "never dropped" in desk.engine.desk.drops.add(host, 60, why="test", by="somebody")


def test_routes_that_are_given_by_name_are_not_dropped_and_let_in_when_the_name_leads_there() -> None:
    """Of both the answer before the last one counts too: a carrier sends from there until its own caches have run out."""
    desk = desk_of()
    engine = desk.engine
    by_name = replace(engine.desk.settings.trunks[0], hop=Hop("UDP", "carrier.example", 5060), networks=())
    engine.desk.settings = replace(engine.desk.settings, trunks=(by_name,))
    routes = {
        place: tuple(replace(one, uri="sip:112@psap.example") for one in found)
        for place, found in engine.desk.snapshot.psap.items()
    }
    engine.desk.snapshot = replace(engine.desk.snapshot, psap=routes)
    for name, why in (("carrier.example", "trunk"), ("psap.example", "psap")):
        former, latest, other = (f"198.18.{len(name)}.{number}" for number in (1, 2, 3))
        fire(desk)
        assert engine.desk.drops.add(other, 60, why="test", by="somebody") == "", "no name leads there yet"
        engine.resolved(Hop("UDP", name), [Place("UDP", former, 5060)])
        engine.resolved(Hop("UDP", name), [Place("UDP", host, 5060) for host in (latest, other)])
        assert [engine.desk.drops.protection(host) for host in (former, latest)] == [why, why]
        desk.tick(3.0)
        assert fire(desk) == [SpareSource(other)]
        assert engine.desk.counters["drops_ended", why] == 1


def test_a_party_of_a_live_call_is_never_dropped() -> None:
    desk = desk_of()
    flow = live_call(desk)
    desk.tick(10.0)
    assert "a call is live" in desk.engine.desk.drops.add(flow.host, 60, why="test", by="somebody")


def test_a_call_for_help_of_a_source_that_offends_is_taken_until_the_kernel_drops_it() -> None:
    """Invariant 1: what reaches the node is heard, whatever the source did; and from then on the kernel is not asked."""
    desk = desk_of()
    scan(desk, count=19, seconds=9.0)
    uri = b"sip:112@sip.test"
    headers = (desk.credentials(b"INVITE", uri, flow=STRANGER), (b"Contact", CONTACT))
    answers = desk.receive(desk.request(b"INVITE", uri, headers=headers), STRANGER)
    assert not [message for message in answers if isinstance(message, Response) and message.status >= 300]
    assert any(message.uri.startswith(b"sip:112@") for message in answers if not isinstance(message, Response))
    assert scan(desk, count=200) == []


def test_a_dry_run_says_who_would_be_dropped_and_asks_nothing_of_the_kernel() -> None:
    desk = desk_of(replace(RULES, mode="dry_run"))
    notes = []
    for _ in range(40):
        desk.receive(desk.request(b"OPTIONS", headers=SCAN), STRANGER)
        assert not [action for action in desk.actions if isinstance(action, DropSource)]
        notes += [action for action in desk.actions if isinstance(action, Note) and action.event == "source_dropped"]
        desk.tick(0.25)
    (note,) = notes
    assert note.fields == {"source": "203.0.113.99", "why": "scan", "by": "node", "for_s": 300, "dry_run": True}
    assert sources(desk) == ["203.0.113.99"]


def test_off_by_default_nothing_is_counted() -> None:
    desk = Desk()
    assert scan(desk, count=300) == []
    assert desk.engine.desk.drops.suspects == 0
    assert "the drop list is off" in desk.engine.desk.drops.add("192.0.2.9", 60, why="test", by="somebody")


def test_a_kernel_that_refuses_is_not_asked_again() -> None:
    desk = desk_of()
    desk.engine.desk.drops.problem = "Operation not permitted"
    assert scan(desk, count=100) == []
    assert "Operation not permitted" in desk.engine.desk.drops.add("192.0.2.9", 60, why="test", by="somebody")


def test_a_dropped_source_where_a_customer_shows_at_another_node_is_let_through_again() -> None:
    desk = desk_of()
    assert scan(desk) == [DropSource("203.0.113.99", 300)]
    other = make_town().world.engine
    guest = Desk(other)
    assert guest.register(CONTACT, flow=STRANGER).status == 200
    ((user, binding),) = other.desk.location.items()
    desk.engine.binding_seen(user, replace_node(binding), desk.now)
    desk.tick(3.0)
    assert fire(desk) == [SpareSource("203.0.113.99")]
    assert sources(desk) == []


def replace_node(binding: object) -> object:
    import msgspec

    return msgspec.structs.replace(binding, node="n2")  # type: ignore[type-var]


def test_the_list_is_bounded_and_what_it_has_no_room_for_is_counted() -> None:
    desk = desk_of()
    for number in range(5):
        scan(desk, flow_at(f"203.0.113.{100 + number}"))
    assert len(sources(desk)) == 3
    assert desk.engine.desk.counters["drops_refused", "full"] > 0


def test_the_table_of_suspects_is_bounded_and_forgets_who_was_silent_for_longest() -> None:
    desk = desk_of(rates=Rates(sources=4))
    for number in range(10):
        scan(desk, flow_at(f"203.0.113.{100 + number}"), count=2)
    assert desk.engine.desk.drops.suspects == 4
    assert desk.engine.desk.counters["drops_forgotten", "full"] == 6


def test_an_operator_puts_an_address_on_the_list_and_takes_it_off() -> None:
    desk = desk_of()
    drops = desk.engine.desk.drops
    desk.engine.desk.now = desk.now
    assert drops.add("192.0.2.9", 60, why="asked by its owner", by="root") == ""
    assert desk.engine.desk.take_actions()[-1] == DropSource("192.0.2.9", 60)
    rows = drops.view()["drops"]
    assert isinstance(rows, list)
    assert (rows[0]["by"], rows[0]["why"], rows[0]["until_ms"] - rows[0]["since_ms"]) == ("root", "asked by its owner", 60_000)
    assert "not on the list" in drops.remove("192.0.2.10", by="root")
    assert drops.remove("192.0.2.9", by="root") == ""
    assert desk.engine.desk.take_actions()[-1] == SpareSource("192.0.2.9")
    assert "not an IP address" in drops.add("example.net", 60, why="", by="root")
