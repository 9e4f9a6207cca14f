"""store.bindings: written behind, latest state wins, nothing dead comes back (design §6, §8)."""

from __future__ import annotations

import asyncio
import time

import msgpack
import msgspec
import pytest
from store_server import Connect, Relay, Server, eventually, load_all

from sipproxy.engine.structs import Binding
from sipproxy.sip.flow import Flow
from sipproxy.store import keys
from sipproxy.store.backlog import WINDOW
from sipproxy.store.bindings import Bindings
from sipproxy.store.connection import Bounds, State


def binding(key: str = "k", *, cseq: int = 1, lives_ms: int = 60_000) -> Binding:
    expires_at_ms = time.time_ns() // 1_000_000 + lives_ms
    flow = Flow("UDP", 0, "127.0.0.1", 5070)
    return Binding(
        key, "sip:a\xe4@127.0.0.1", flow, ("<sip:p;lr>",), "id", cseq, expires_at_ms, "agent", 500, "<urn:uuid:1>", 1, "n1"
    )


async def written(bindings: Bindings) -> None:
    await eventually(lambda: bindings.unwritten == 0, "all bindings written")


async def test_save_then_load_returns_the_same_bindings(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    bindings = Bindings(store)
    wanted = [("u1", binding("a")), ("u1", binding("b")), ("u}2", binding("a")), ("\xfc*\udcff", binding("ä"))]
    for user, one in wanted:
        bindings.save(user, one)
    await written(bindings)
    assert sorted(await load_all(Bindings(store)), key=repr) == sorted(wanted, key=repr)


async def test_save_waits_for_half_a_window_of_others_to_leave_with(server: Server, connect: Connect) -> None:
    store = await connect(server.url, bounds=Bounds(probe_ms=3_600_000, stall_ms=3_600_000))
    bindings, pipelines = Bindings(store, linger_s=3600.0), store.stats.pipelines
    for number in range(WINDOW // 2):
        bindings.save(f"u{number}", binding())
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert (store.stats.pipelines, bindings.unwritten) == (pipelines, WINDOW // 2)
    bindings.save("one more", binding())
    await written(bindings)
    assert store.stats.pipelines == pipelines + 1


async def test_save_again_replaces_and_remove_removes(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    newer = binding("a", cseq=2)
    bindings.save("u", binding("a", cseq=1))
    bindings.save("u", newer)
    bindings.save("u", binding("b"))
    bindings.remove("u", "b", time.time_ns() // 1_000_000)
    bindings.remove("u", "never", time.time_ns() // 1_000_000)
    await written(bindings)
    assert await load_all(bindings) == [("u", newer)]
    assert server.ask("HKEYS", keys.bindings("u")) == [b"a"]


async def test_value_is_a_map_that_another_msgpack_reads(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    bindings.save("u", binding("a"))
    await written(bindings)
    value = msgpack.unpackb(server.ask("HGET", keys.bindings("u"), "a"))
    assert (value["key"], value["contact"], value["flow"]) == ("a", "sip:a\xe4@127.0.0.1", ["UDP", 0, "127.0.0.1", 5070, 0, []])


async def test_hash_lives_as_long_as_its_longest_binding(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    bindings.save("u", binding("long", lives_ms=900_000))
    bindings.save("u", binding("short", lives_ms=1000))
    await written(bindings)
    ttl = server.ask("PTTL", keys.bindings("u"))
    assert isinstance(ttl, int)
    assert 800_000 < ttl <= 960_000  # 60 s beyond the longest, less what the machine took


async def test_load_leaves_expired_bindings_out_and_cleans_them_up(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    clock = [time.time_ns() // 1_000_000]
    bindings = Bindings(store, utc_ms=lambda: clock[0])
    bindings.save("u", binding("short", lives_ms=10_000))
    bindings.save("u", binding("long", lives_ms=50_000))
    await written(bindings)
    clock[0] += 20_000
    assert [one.key for _, one in await load_all(bindings)] == ["long"]
    await eventually(lambda: server.ask("HKEYS", keys.bindings("u")) == [b"long"])


async def test_load_skips_and_keeps_what_it_cannot_read(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    bindings.save("u", binding("a"))
    await written(bindings)
    server.ask("HSET", keys.bindings("u"), "odd", b"\xc1", "other", msgspec.msgpack.encode({"key": 1}))
    good = server.ask("HGET", keys.bindings("u"), "a")
    server.ask("HSET", keys.bindings("u"), "no UTF-8", good.replace(b"sip:", b"\xffip:"))
    assert [one.key for _, one in await load_all(bindings)] == ["a"]
    assert bindings.undecodable == 3
    assert server.ask("HLEN", keys.bindings("u")) == 4


async def test_load_reads_a_binding_with_fields_of_a_later_version(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    one = binding("a")
    server.ask("HSET", keys.bindings("u"), "a", msgspec.msgpack.encode({**msgspec.to_builtins(one), "later": 1}))
    assert await load_all(bindings) == [("u", one)]


async def test_away_keeps_the_latest_state_and_writes_it_when_back(relay: Relay, connect: Connect, server: Server) -> None:
    store = await connect(relay.url)
    bindings = Bindings(store)
    for key in ("kept", "removed", "changed"):
        bindings.save("u", binding(key))
    await written(bindings)
    relay.refusing = True
    relay.cut()
    await eventually(lambda: store.state is State.AWAY)
    changed = binding("changed", cseq=9)
    bindings.remove("u", "removed", time.time_ns() // 1_000_000)
    for cseq in range(2, 9):
        bindings.save("u", binding("changed", cseq=cseq))
    bindings.save("u", changed)
    bindings.save("u", binding("brief"))
    bindings.remove("u", "brief", time.time_ns() // 1_000_000)
    assert bindings.unwritten == 3
    relay.refusing = False
    await eventually(lambda: store.state is State.UP)
    await written(bindings)
    loaded = {one.key: one for _, one in await load_all(bindings)}
    assert set(loaded) == {"kept", "changed"}
    assert loaded["changed"] == changed


async def test_away_beyond_the_bound_is_dropped_and_counted(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    bindings = Bindings(store, limit=5)
    doomed.kill()
    await eventually(lambda: store.state is State.AWAY)
    for number in range(8):
        bindings.save("u", binding(f"k{number}"))
    bindings.save("u", binding("k0", cseq=2))  # known already: no new entry
    assert bindings.unwritten == 5
    assert bindings.dropped == {"FULL": 3}
    doomed.start()
    await written(bindings)
    assert len(await load_all(bindings)) == 5


async def test_away_binding_that_dies_while_it_waits_is_not_written(doomed: Server, connect: Connect) -> None:
    clock = [time.time_ns() // 1_000_000]
    store = await connect(doomed.url)
    bindings = Bindings(store, node="n1", utc_ms=lambda: clock[0])
    bindings.save("u", binding("a"))
    await written(bindings)
    doomed.kill()
    await eventually(lambda: store.state is State.AWAY)
    bindings.save("u", binding("a", cseq=2))
    clock[0] += 100_000
    doomed.start()
    await eventually(lambda: store.state is State.UP)
    await written(bindings)
    assert doomed.ask("EXISTS", keys.bindings("u")) == 0


@pytest.mark.parametrize(
    ("break_", "mend"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
)
async def test_refusing_server_gets_the_bindings_when_it_recovers(
    doomed: Server, connect: Connect, break_: tuple[str, ...], mend: tuple[str, ...]
) -> None:
    store = await connect(doomed.url)
    bindings = Bindings(store)
    doomed.ask(*break_)
    for number in range(1000):
        bindings.save(f"u{number}", binding())
    await eventually(lambda: store.state is not State.UP)
    assert bindings.unwritten == 1000
    doomed.ask(*mend)
    await written(bindings)
    assert len(await load_all(bindings)) == 1000
    assert bindings.dropped == {}


async def test_connection_cut_while_writing_loses_no_binding(relay: Relay, server: Server, connect: Connect) -> None:
    store = await connect(relay.url)
    bindings = Bindings(store)
    for number in range(3000):
        bindings.save(f"u{number}", binding())
    while bindings.unwritten:
        before = store.stats.replied
        await eventually(lambda: store.stats.replied > before + 300 or not bindings.unwritten)  # noqa: B023
        relay.cut()
        await eventually(lambda: store.state is State.UP)
    kept = Bindings(await connect(server.url))
    assert len(await load_all(kept)) == 3000
    assert max([len(page) async for page in kept.pages()]) < 2000, "never all at once: memory has them already"
    assert store.stats.connects > 2


async def test_save_all_after_flush_writes_from_memory_without_overtaking(server: Server, connect: Connect) -> None:
    bindings = Bindings(await connect(server.url))
    old, new = binding("a", cseq=1), binding("a", cseq=2)
    bindings.save("u", new)  # still waiting for its reply
    bindings.save_all([("u", old), ("v", binding("b"))])
    await written(bindings)
    assert dict(await load_all(bindings))["u"] == new
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    bindings.save_all([("u", new), ("v", binding("b"))])
    await written(bindings)
    assert {user for user, _ in await load_all(bindings)} == {"u", "v"}


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_hundred_thousand_bindings_are_loaded_whole(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    bindings = Bindings(store)
    for number in range(100_000):
        bindings.save(f"u{number}", binding())
    await eventually(lambda: bindings.unwritten == 0, seconds=60)
    started = time.monotonic()
    loaded = await load_all(bindings)
    print(f"loaded in {time.monotonic() - started:.2f} s")
    assert {user for user, _ in loaded} == {f"u{number}" for number in range(100_000)}
    assert len(loaded) == 100_000
