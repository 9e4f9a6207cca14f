"""store.following: what one node writes reaches the other, whatever became of the store meanwhile (design §6, §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from store_server import Connect, Relay, Server, eventually, load_all

from cdr.wire import cancel_all
from sipproxy.engine.structs import Binding
from sipproxy.sip.flow import Flow
from sipproxy.store import following, keys
from sipproxy.store.bindings import Bindings
from sipproxy.store.following import Follower

if TYPE_CHECKING:
    from sipproxy.store.connection import Store

NOW_MS = time.time_ns() // 1_000_000  # at import: what lives from then on has to outlive the whole run of tests
DAY_MS = 86_400_000


def binding(key: str = "k", *, cseq: int = 1, at_ms: int = NOW_MS, call_id: str = "id", node: str = "n1") -> Binding:
    flow = Flow("UDP", 0, "127.0.0.1", 5070)
    return Binding(key, "sip:a@127.0.0.1", flow, (), call_id, cseq, NOW_MS + DAY_MS, node=node, at_ms=at_ms)


@dataclass
class Memory:
    """What an engine would hold, without its rules."""

    held: dict[tuple[str, str], Binding] = field(default_factory=dict)
    gone: list[tuple[str, str]] = field(default_factory=list)
    heard: list[int | None] = field(default_factory=list)
    reads: int = 0
    count: int = 0  # in the store, when all was read
    lacking: bool = False

    def bindings_read(self, bindings: Sequence[tuple[str, Binding]], /) -> list[tuple[str, str]]:
        self.held |= {(user, one.key): one for user, one in bindings}
        return [(user, one.key) for user, one in bindings]

    def all_read(self, count: int, elsewhere: set[tuple[str, str]], /) -> bool:
        self.reads += 1
        self.held = {ident: one for ident, one in self.held.items() if ident in elsewhere}
        self.count = count
        return self.lacking

    def binding_seen(self, user: str, one: Binding, /) -> None:
        self.held[user, one.key] = one

    def binding_gone(self, user: str, key: str, at_ms: int, /) -> None:
        self.held.pop((user, key), None)
        self.gone.append((user, key))

    def unheard(self, since_ms: int | None, /) -> None:
        self.heard.append(since_ms)


@dataclass
class Reader:
    """Node n2, which follows."""

    memory: Memory
    follower: Follower


@pytest_asyncio.fixture
async def writer(server: Server, connect: Connect) -> Bindings:
    """Node n1, which writes."""
    return Bindings(await connect(server.url), node="n1", logged=100)


@pytest_asyncio.fixture
async def reader(server: Server, relay: Relay, connect: Connect) -> AsyncIterator[Reader]:
    """Behind a relay, which can be cut."""
    reader = following_of(await connect(relay.url))
    task = asyncio.create_task(reader.follower.run())
    await eventually(lambda: reader.follower.is_following)
    yield reader
    await cancel_all([task])


def following_of(store: Store) -> Reader:
    memory = Memory()
    return Reader(memory, Follower(store, Bindings(store, node="n2"), "n2", memory))


async def test_change_at_one_node_reaches_the_other(writer: Bindings, reader: Reader) -> None:
    writer.save("u", binding("a"))
    writer.save("\xfc*\udcff", binding("ä"))
    await eventually(lambda: set(reader.memory.held) == {("u", "a"), ("\xfc*\udcff", "ä")})
    assert reader.memory.held["u", "a"] == binding("a")
    writer.remove("u", "a", time.time_ns() // 1_000_000)
    await eventually(lambda: ("u", "a") not in reader.memory.held)
    assert (reader.memory.reads, reader.memory.count) == (1, 0)
    assert reader.follower.applied == 3
    assert reader.follower.lag_ms < 60_000


async def test_log_is_read_once_a_second_while_no_other_node_lives(
    writer: Bindings, server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BATCH", 2)
    store, alone = await connect(server.url), True
    memory = Memory()
    follower = Follower(store, Bindings(store, node="n2"), "n2", memory, is_alone=lambda: alone)
    assert follower.pause_s == following.POLL_S, "what is there is read first"
    await follower.step()
    assert follower.pause_s == following.LONE_S
    for contact in "abc":
        writer.save("u", binding(contact))
    await eventually(lambda: writer.unwritten == 0)
    await follower.step()
    assert follower.pause_s == following.POLL_S, "there is more"
    await follower.step()
    assert (len(memory.held), follower.pause_s) == (3, following.LONE_S)
    alone = False
    assert follower.pause_s == following.POLL_S


async def test_own_writes_do_not_come_back(reader: Reader, connect: Connect, server: Server) -> None:
    own, other = Bindings(await connect(server.url), node="n2"), Bindings(await connect(server.url), node="n1")
    own.save("u", binding("own"))
    await eventually(lambda: own.unwritten == 0)
    other.save("u", binding("other"))
    await eventually(lambda: ("u", "other") in reader.memory.held)
    assert ("u", "own") not in reader.memory.held


async def test_outage_is_followed_by_a_whole_read(writer: Bindings, reader: Reader, relay: Relay) -> None:
    writer.save("u", binding("before"))
    await eventually(lambda: ("u", "before") in reader.memory.held)
    relay.refusing = True
    relay.cut()
    await eventually(lambda: not reader.follower.is_following)
    writer.save("u", binding("meanwhile"))
    writer.remove("u", "before", time.time_ns() // 1_000_000)
    await eventually(lambda: writer.unwritten == 0)
    assert ("u", "before") in reader.memory.held  # what is known stays
    relay.refusing = False
    await eventually(lambda: set(reader.memory.held) == {("u", "meanwhile")})
    assert reader.follower.rereads["outage"] == 1
    assert reader.memory.count == 1


async def test_flush_is_noticed_and_later_changes_are_seen(writer: Bindings, reader: Reader, server: Server) -> None:
    writer.save("u", binding("a"))
    await eventually(lambda: ("u", "a") in reader.memory.held)
    server.ask("FLUSHALL")
    await eventually(lambda: reader.follower.rereads["flushed"] == 1)
    await eventually(lambda: reader.follower.is_following)
    assert reader.memory.held == {}
    writer.save("u", binding("b"))
    await eventually(lambda: ("u", "b") in reader.memory.held)


async def test_log_that_was_cut_before_it_was_read_is_a_gap(writer: Bindings, connect: Connect, server: Server) -> None:
    reader = following_of(await connect(server.url))
    writer.save("u", binding("first"))
    await eventually(lambda: writer.unwritten == 0)
    await reader.follower.step()
    await reader.follower.step()
    for number in range(1000):  # the log is cut in whole nodes of 100 entries
        writer.save(f"u{number}", binding())
    await eventually(lambda: writer.unwritten == 0)
    length = server.ask("XLEN", keys.BINDINGS_LOG)
    assert isinstance(length, int)
    assert length < 300
    await reader.follower.step()
    assert not reader.follower.is_following
    await reader.follower.step()
    assert reader.follower.rereads == {"start": 1, "gap": 1}
    assert len(reader.memory.held) == 1001


async def test_more_entries_than_one_read_takes_are_all_taken(
    writer: Bindings, connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BATCH", 7)
    reader = following_of(await connect(server.url))
    await reader.follower.step()
    for number in range(50):
        writer.save(f"u{number}", binding())
    await eventually(lambda: writer.unwritten == 0)
    for _ in range(8):
        await reader.follower.step()
    assert len(reader.memory.held) == 50
    assert reader.memory.reads == 1


async def test_entry_that_cannot_be_read_is_counted_and_passed(writer: Bindings, reader: Reader, server: Server) -> None:
    for fields in (("b", b"\xc1"), ("gone", "soon"), ("other", "x")):
        server.ask("XADD", keys.BINDINGS_LOG, "*", "node", "n1", "user", "u", "key", "k", *fields)
    server.ask("XADD", keys.BINDINGS_LOG, "*", "odd", "entry")
    writer.save("u", binding("good"))
    await eventually(lambda: ("u", "good") in reader.memory.held)
    assert reader.follower.undecodable == 4


async def test_lacking_bindings_are_looked_for_again(connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "CONFIRM_S", 0.0)
    reader = following_of(await connect(server.url))
    reader.memory.lacking = True
    await reader.follower.step()
    reader.memory.lacking = False
    await reader.follower.step()
    await reader.follower.step()
    assert reader.follower.rereads == {"start": 1, "lacking": 1}


# The latest REGISTER stays, whoever's write comes last


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        (binding(at_ms=NOW_MS), binding(at_ms=NOW_MS + 5, call_id="x", node="n2"), "n2"),
        (binding(at_ms=NOW_MS + 5), binding(at_ms=NOW_MS, call_id="x", node="n2"), "n1"),
        (binding(cseq=3, at_ms=NOW_MS + 5), binding(cseq=4, at_ms=NOW_MS, node="n2"), "n2"),
        (binding(cseq=4, at_ms=NOW_MS), binding(cseq=3, at_ms=NOW_MS + 5, node="n2"), "n1"),
        (binding(cseq=4, at_ms=NOW_MS), binding(cseq=4, at_ms=NOW_MS, node="n2"), "n2"),
        (binding(node="n3"), binding(call_id="x", node="n2"), "n3"),
    ],
)
async def test_write_of_an_older_binding_changes_nothing(
    server: Server, connect: Connect, first: Binding, second: Binding, stays: str
) -> None:
    from sipproxy.engine.location import supersedes

    for one in (first, second):
        bindings = Bindings(await connect(server.url), node=one.node)
        bindings.save("u", one)
        await eventually(lambda: bindings.unwritten == 0)  # noqa: B023
    [(_, held)] = await load_all(bindings)
    assert held.node == stays
    assert supersedes(second, first) is (stays == second.node)  # the same rule in memory
    told = server.ask("XLEN", keys.BINDINGS_LOG)
    assert told == (2 if stays == second.node else 1)


async def test_removal_of_an_older_registration_leaves_the_newer_one(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    late, moved = Bindings(store, node="n1", utc_ms=lambda: NOW_MS), Bindings(store, node="n2")
    moved.save("u", binding(at_ms=NOW_MS + 5, node="n2"))
    late.remove("u", "k", NOW_MS)
    await eventually(lambda: not moved.unwritten and not late.unwritten)
    assert [one.node for _, one in await load_all(moved)] == ["n2"]


async def test_same_binding_again_is_no_change(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url), node="n1")
    for _ in range(3):
        bindings.save("u", binding())
        await eventually(lambda: bindings.unwritten == 0)
    assert server.ask("XLEN", keys.BINDINGS_LOG) == 1


async def test_outage_is_told_with_the_time_of_the_last_read_and_its_end_too(
    reader: Reader, relay: Relay, writer: Bindings
) -> None:
    """Meanwhile other nodes' bindings stay as they were (design §8)."""
    task = asyncio.create_task(reader.follower.run())
    try:
        await eventually(lambda: reader.memory.reads)
        assert reader.memory.heard == []
        relay.refusing = True
        relay.cut()
        await eventually(lambda: reader.memory.heard)
        [since_ms] = reader.memory.heard
        assert since_ms is not None
        assert NOW_MS <= since_ms <= time.time_ns() // 1_000_000
        relay.refusing = False
        await eventually(lambda: len(reader.memory.heard) == 2)
        assert reader.memory.heard == [since_ms, None]
    finally:
        await cancel_all([task])
