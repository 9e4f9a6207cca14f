"""Bindings of several nodes, told to each other in any order: all agree in the end, and nobody gives up a newer one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest

from sipproxy.engine.actions import Action, Now, RemoveBinding, SaveBinding
from sipproxy.engine.edge import with_token
from sipproxy.engine.location import MAX_REMOVED
from sipproxy.engine.replicas import LACKING_S
from sipproxy.engine.structs import Binding, Reach
from sipproxy.sip.flow import Flow
from tests.engine.desk import Desk
from tests.sim.conftest import make_town

NOW_MS = 1_790_000_000_000
IDENT = ("alice", "k")


def binding(key: str = "k", *, node: str = "n2", at_ms: int = NOW_MS, cseq: int = 1, **fields: object) -> Binding:
    given: dict[str, object] = {"call_id": f"c-{node}", "expires_at_ms": NOW_MS + 600_000, **fields}
    flow = Flow("UDP", 0, "203.0.113.1", 5060)
    return Binding(key, f"sip:{key}@203.0.113.1", flow, (), cseq=cseq, node=node, at_ms=at_ms, **given)  # type: ignore[arg-type]


@dataclass
class Node:
    """An engine that is told of others' bindings; it is `n1`."""

    desk: Desk = field(default_factory=lambda: Desk(utc_ms=NOW_MS))

    @property
    def now(self) -> Now:
        return self.desk.now

    def seen(self, one: Binding, user: str = "alice", *, is_told: bool = False) -> list[Action]:
        return self.desk.engine.binding_seen(user, one, self.now, is_told=is_told)

    def gone(self, at_ms: int, key: str = "k", *, is_told: bool = False) -> list[Action]:
        return self.desk.engine.binding_gone("alice", key, at_ms, self.now, is_told=is_told)

    def held(self, user: str = "alice") -> dict[str, str]:
        location = self.desk.engine.desk.location
        return {one.key: one.node for one in location.bindings(user, self.now.utc_ms)}


@pytest.fixture
def node() -> Node:
    return Node()


def test_binding_of_another_node_is_held_counted_apart_and_expires(node: Node) -> None:
    node.seen(binding())
    location = node.desk.engine.desk.location
    assert (location.count, location.elsewhere, node.held()) == (1, 1, {"k": "n2"})
    node.desk.tick(601)
    node.desk.engine.expire_bindings(node.now)
    assert (location.count, location.elsewhere) == (0, 0)


def test_same_device_by_another_contact_at_another_node_has_moved(node: Node) -> None:
    node.desk.register(b'<sip:alice@203.0.113.1>;+sip.instance="<urn:uuid:1>"')
    own = next(iter(node.held()))
    told = node.seen(binding("new", at_ms=NOW_MS + 5, instance='"<urn:uuid:1>"'))
    assert node.held() == {"new": "n2"}
    assert [(a.user, a.key) for a in told if isinstance(a, RemoveBinding)] == [("alice", own)]


def test_same_device_registered_here_later_stays_here(node: Node) -> None:
    node.desk.tick(10)
    node.desk.register(b'<sip:alice@203.0.113.1>;+sip.instance="<urn:uuid:1>"')
    node.seen(binding("old", instance='"<urn:uuid:1>"'))
    assert list(node.held().values()) == ["n1"]


def test_removal_that_is_older_than_the_binding_leaves_it(node: Node) -> None:
    node.seen(binding())
    node.gone(NOW_MS - 1)
    assert node.held() == {"k": "n2"}
    node.gone(NOW_MS)
    assert node.held() == {}


def test_later_word_of_the_same_node_counts_whatever_its_clock_says(node: Node) -> None:
    node.seen(binding(user_agent="first"))
    node.seen(binding(user_agent="second", at_ms=NOW_MS - 5000, call_id="new"))
    [one] = node.desk.engine.desk.location.bindings("alice", NOW_MS)
    assert one.user_agent == "second"


@pytest.fixture
def worker() -> Node:
    """A worker beside `n2` of the same node; `n3` is another node."""
    return Node(Desk(make_town(worker=1, siblings=frozenset({"n1", "n2"})).world.engine))


def test_binding_that_a_worker_removed_does_not_come_back_by_what_the_store_tells_later(worker: Node) -> None:
    """The other worker's word is ahead of the store's log, where the REGISTER of before comes first."""
    worker.seen(binding(), is_told=True)
    worker.gone(NOW_MS + 30, is_told=True)
    worker.seen(binding())
    worker.desk.engine.bindings_read([("alice", binding())], worker.now, own_too=False)
    assert worker.held() == {}
    worker.seen(binding(at_ms=NOW_MS + 30), is_told=True)  # again, within the millisecond
    worker.gone(NOW_MS + 29)
    assert worker.held() == {"k": "n2"}


def test_binding_that_a_worker_removed_of_another_one_does_not_come_back_to_it(worker: Node) -> None:
    """A device comes back by another connection, which another worker has, and unregisters there."""
    worker.seen(binding(call_id="elsewhere"), is_told=True)
    assert worker.desk.register(b"<sip:k@203.0.113.1>", expires=0).status == 200
    worker.seen(binding(call_id="elsewhere"))
    assert worker.held() == {}


def test_binding_that_another_worker_removed_is_not_written_behind_its_removal(worker: Node) -> None:
    """It may wait for the store, or for others to be written with it."""
    worker.desk.register(b"<sip:alice@203.0.113.1>")
    [key] = worker.held()
    assert list(worker.gone(NOW_MS + 30, key, is_told=True)) == [RemoveBinding("alice", key, NOW_MS)]
    assert worker.held() == {}
    worker.desk.register(b"<sip:alice@203.0.113.1>")
    assert list(worker.gone(NOW_MS, key)) == []  # another node's removal was written before it was heard of


def test_binding_that_a_worker_told_is_not_replaced_by_an_earlier_one_from_the_store(worker: Node) -> None:
    worker.seen(binding(user_agent="second", at_ms=NOW_MS + 30), is_told=True)
    worker.seen(binding(user_agent="first"))
    [one] = worker.desk.engine.desk.location.bindings("alice", NOW_MS)
    assert one.user_agent == "second"
    worker.seen(binding(user_agent="third", at_ms=NOW_MS - 5000), is_told=True)  # its clock was set
    [one] = worker.desk.engine.desk.location.bindings("alice", NOW_MS)
    assert one.user_agent == "third"


def test_bindings_that_were_removed_are_remembered_within_a_bound_and_of_workers_alone(worker: Node) -> None:
    location = worker.desk.engine.desk.location
    for number in range(MAX_REMOVED + 5):
        worker.seen(binding(f"k{number}"), is_told=True)
        worker.gone(NOW_MS, f"k{number}", is_told=True)
    assert location.removed == MAX_REMOVED
    worker.seen(binding(f"k{MAX_REMOVED + 4}", node="n3"))
    assert worker.held() == {f"k{MAX_REMOVED + 4}": "n3"}


def test_binding_that_the_store_lacks_goes_after_its_node_had_time_to_write_it_again(node: Node) -> None:
    node.seen(binding())
    lacking = node.desk.engine.bindings_lacking
    for _ in range(3):
        assert lacking([IDENT], node.now)
    assert node.held() == {"k": "n2"}
    assert not lacking([], node.now)  # it was there in between
    node.desk.tick(LACKING_S)
    assert lacking([IDENT], node.now)
    node.desk.tick(LACKING_S)
    assert not lacking([IDENT], node.now)
    assert node.held() == {}


def test_own_bindings_are_taken_from_the_store_at_the_start_alone(node: Node) -> None:
    own = binding(node="n1")
    node.desk.engine.bindings_read([("alice", own)], node.now, own_too=False)
    assert node.held() == {}
    node.desk.engine.bindings_read([("alice", own)], node.now, own_too=True)
    assert node.held() == {"k": "n1"}
    node.desk.engine.bindings_read([("alice", binding(node="n1", user_agent="stale"))], node.now, own_too=True)
    assert [one.user_agent for one in node.desk.engine.desk.location.bindings("alice", NOW_MS)] == [""]


def test_own_binding_from_the_store_has_a_token_of_todays_secret(node: Node) -> None:
    """Of an earlier version, or of a node whose secret was lost with its disk: other nodes could bring it no call."""
    engine = node.desk.engine
    told = engine.bindings_read([("alice", binding(node="", token="old"))], node.now, own_too=True)
    [saved] = [action.binding for action in told if isinstance(action, SaveBinding)]
    assert saved.node == "n1"
    written = with_token(engine.desk.tokens, "alice", saved)
    assert engine.desk.tokens.open(Reach, written.token.encode()) is not None
    other = Node()
    assert list(other.desk.engine.bindings_read([("alice", written)], node.now, own_too=True)) == []  # nothing to renew


def test_binding_beyond_the_limit_is_counted(node: Node) -> None:
    engine = node.desk.engine
    engine.desk.location._limit = 1
    node.seen(binding("a"))
    node.seen(binding("b"))
    assert node.held() == {"a": "n2"}
    assert engine.desk.counters["bindings_refused", "full"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_bindings_told_in_any_order_end_in_the_same_state(seed: int) -> None:
    """Each node's own changes come in order, as in the log; how they are interleaved is chance."""
    choose = random.Random(seed)
    logs: dict[str, list[Binding]] = {
        name: [
            binding(choose.choice("ab"), node=name, at_ms=NOW_MS + at, call_id=f"{name}-{at}", cseq=at)
            for at in sorted(choose.sample(range(50), 6))
        ]
        for name in ("n2", "n3", "n4")
    }
    results = []
    for _ in range(4):
        node, left = Node(), {name: list(log) for name, log in logs.items()}
        while left:
            name = choose.choice(sorted(left))
            node.seen(left[name].pop(0))
            left = {name: log for name, log in left.items() if log}
        results.append(node.held())
    assert all(result == results[0] for result in results), f"seed {seed}"
    for key, name in results[0].items():
        latest = max((one for log in logs.values() for one in log if one.key == key), key=lambda one: (one.at_ms, one.node))
        assert latest.node == name


@pytest.mark.parametrize(
    ("contact", "flow"),
    [
        ("sip:a@[::", Flow("UDP", 0, "203.0.113.1", 5060)),
        ("sip:\u0142@203.0.113.1", Flow("UDP", 0, "203.0.113.1", 5060)),
        ("tel:1", Flow("UDP", 0, "203.0.113.1", 5060)),
        ("sip:a@203.0.113.1", Flow("UDP", 7, "203.0.113.1", 5060)),
        ("sip:a@203.0.113.1", Flow("TCP", 0, "203.0.113.1", 5060, 3)),
        ("sip:a@203.0.113.1", Flow("UDP", 0, "nowhere", 5060)),
        ("sip:a@203.0.113.1", Flow("UDP", -1, "203.0.113.1", 5060)),
        ("sip:a@203.0.113.1", Flow("UDP", 0, "203.0.113.1", 2**40)),
    ],
)
def test_binding_that_nobody_can_be_reached_by_is_not_taken_and_breaks_nothing(node: Node, contact: str, flow: Flow) -> None:
    """The store, or this node before its listeners changed, may hold anything."""
    odd = msgspec.structs.replace(binding(node="n1"), contact=contact, flow=flow)
    node.desk.engine.bindings_read([("alice", odd)], node.now, own_too=True)
    assert node.held() == {}
    assert node.desk.engine.desk.counters["bindings_refused", "unusable"] == 1
    assert node.desk.register(b"<sip:alice@203.0.113.1:5060>").status == 200
