"""The table of bindings against a naive model."""

from __future__ import annotations

import random

import msgspec
import pytest

from sipproxy.engine.location import EXPIRY_STEP_MS, LOOKED_AT_MS, Location
from sipproxy.engine.structs import Binding
from sipproxy.sip.flow import Flow

FLOWS = [Flow("UDP", 0, "203.0.113.1", port) for port in (5060, 5062, 5064)]


def binding(key: str, flow: Flow, expires_at_ms: int, q: int = 1000) -> Binding:
    return Binding(key, f"sip:{key}@x", flow, (), "call", 1, expires_at_ms, q=q)


def test_binding_that_moves_to_another_flow_leaves_the_old_one() -> None:
    location = Location(10)
    location.put("alice", binding("a", FLOWS[0], 100))
    location.put("alice", binding("a", FLOWS[1], 100))
    assert (location.users_at(FLOWS[0], 0), location.users_at(FLOWS[1], 0)) == ([], ["alice"])
    assert location.count == 1
    location.remove("alice", "a")
    assert not location._by_flow, "an address that nobody is at takes no memory"


@pytest.mark.parametrize(("before", "after"), [("far", "near"), ("near", "far")])
def test_binding_that_changes_nodes_is_at_its_connection_where_that_is_this_nodes(before: str, after: str) -> None:
    """A connection's number is each node's own: the same one may be another's there."""
    location, flow = Location(10, "near"), Flow("TCP", 1, "203.0.113.1", 5060, 1)
    location.put("alice", msgspec.structs.replace(binding("a", flow, 100), node=before))
    location.put("alice", msgspec.structs.replace(binding("a", flow, 200), node=after))
    assert location.users_at(flow, 0) == (["alice"] if after == "near" else [])
    location.put("alice", msgspec.structs.replace(binding("a", flow, 300), node=after))
    assert location.users_at(flow, 0) == (["alice"] if after == "near" else [])
    location.remove("alice", "a")
    assert (location.flows_at(flow.host), location.has_binding_at(flow.host)) == (0, False)


def test_full_table_refuses_new_bindings_and_still_refreshes() -> None:
    location = Location(1)
    assert location.put("alice", binding("a", FLOWS[0], 100))
    assert not location.put("bob", binding("b", FLOWS[1], 100))
    assert location.put("alice", binding("a", FLOWS[0], 200))
    assert location.bindings("bob", 0) == []
    assert location.count == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_changes_agree_with_a_plain_dict(seed: int) -> None:
    choose, location, model, now = random.Random(seed), Location(1000), {}, 0
    for _ in range(400):
        user, key = choose.choice("xyz"), choose.choice("abcd")
        roll = choose.random()
        if roll < 0.6:
            new = binding(key, choose.choice(FLOWS), now + choose.randint(1, 60) * EXPIRY_STEP_MS, choose.randint(0, 1000))
            location.put(user, new)
            model[user, key] = new
        elif roll < 0.8:
            assert location.remove(user, key) == (model.pop((user, key), None) is not None)
        else:
            now += choose.randint(1, 30) * EXPIRY_STEP_MS
            gone = {(u, b.key) for u, b in location.expire(now)}
            expected = {name for name, b in model.items() if b.expires_at_ms <= now}
            assert gone == expected
            model = {name: b for name, b in model.items() if name not in expected}
        assert location.count == len(model)
        assert {(u, b.key): b for u, b in location.items()} == model
        for flow in FLOWS:
            at_flow = {u for (u, _), b in model.items() if b.flow == flow and b.expires_at_ms > now}
            assert set(location.users_at(flow, now)) == at_flow
            assert {name for name in "xyz" if location.is_at(name, flow, now)} == at_flow
        for name in "xyz":
            held = location.bindings(name, now)
            assert [b.q for b in held] == sorted((b.q for b in held), reverse=True)
            assert {b.key for b in held} == {k for (u, k), b in model.items() if u == name and b.expires_at_ms > now}


def test_bindings_of_other_nodes_stay_as_they_were_while_nothing_is_heard_of_them() -> None:
    """Design §8, store away: they may have been renewed. What had expired before, and what is ours, goes all the same."""
    location = Location(10, "n1")
    for key, node, until in (("own", "n1", 200_000), ("theirs", "n2", 200_000), ("older", "n2", 90_000)):
        location.put("alice", msgspec.structs.replace(binding(key, FLOWS[0], until), node=node))
    location.unheard_ms = 100_000
    assert [b.key for b in location.reachable("alice", 300_000)] == ["theirs"]
    assert location.bindings("alice", 300_000) == [], "whoever is asked for otherwise has expired"
    assert {b.key for _, b in location.expire(300_000)} == {"own", "older"}
    assert location.expire(301_000) == []
    location.unheard_ms = None
    assert location.reachable("alice", 302_000) == []
    assert {b.key for _, b in location.expire(300_000 + LOOKED_AT_MS)} == {"theirs"}
    assert location.count == 0


def test_binding_is_removed_at_the_end_of_the_step_in_which_it_expires_and_not_before() -> None:
    location = Location(10)
    location.put("alice", binding("a", FLOWS[0], 5 * EXPIRY_STEP_MS + 1))
    location.put("alice", binding("b", FLOWS[0], 6 * EXPIRY_STEP_MS + 1))
    assert location.expire(6 * EXPIRY_STEP_MS - 1) == []
    assert location.bindings("alice", 5 * EXPIRY_STEP_MS + 1) == [location.get("alice", "b")], (
        "no call is routed by it meanwhile"
    )
    assert [b.key for _, b in location.expire(6 * EXPIRY_STEP_MS)] == ["a"]
    assert [b.key for _, b in location.expire(7 * EXPIRY_STEP_MS)] == ["b"]


def test_refreshes_and_removals_leave_nothing_behind() -> None:
    """An account is awaited about once, however often it registers, and whether its bindings are refreshed or replaced."""
    location = Location(10_000)
    for number in range(20_000):
        location.put("alice", binding("a", FLOWS[0], (100 + number) * EXPIRY_STEP_MS))
        location.put("bob", binding(f"k{number}", FLOWS[1], (50_000 - number) * EXPIRY_STEP_MS))
        location.remove("bob", f"k{number}")
    assert sum(len(users) for users in location._looked_at.values()) == location._awaited <= 2 * 2 + 1024
    assert set(location._looked_at) == set(location._looks)
    assert [b.key for _, b in location.expire(200_000 * EXPIRY_STEP_MS)] == ["a"]
    assert (location.count, location._awaited, location._looks) == (0, 0, [])
