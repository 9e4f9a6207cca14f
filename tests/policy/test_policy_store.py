"""Policy data in a real Valkey: whole changes, one snapshot per change, and the store going away."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import redis.asyncio
from policy_samples import PROFILES
from policy_valkey import ended
from redis.exceptions import ResponseError

from policy import store
from policy.change import Change
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.table import PolicyError

if TYPE_CHECKING:
    from policy_valkey import Server


def line(key: str, *accounts: str, status: LineStatus = LineStatus.ACTIVE) -> Line:
    return Line(key, "velbert", status, None, "town", "02051", accounts)


def account(user: str, owner: str, *numbers: str) -> Account:
    return Account(user, owner, AccountKind.TRUNK, {"MD5": "a" * 32}, numbers)


EVERYWHERE = (PsapRoute("*", "110", 1, "sip:110@a"), PsapRoute("*", "112", 1, "sip:112@a"))
FIRST = Change(
    lines=(line("L1", "a1"), line("L2")),
    accounts=(account("a1", "L1", "+492051988111", "+492051777*"),),
    psap=(
        PsapRoute("town", "112", 2, "sip:112@b"),
        PsapRoute("town", "112", 1, "sip:112@a"),
        PsapRoute("*", "110", 1, "sip:1@a"),
    ),
    blocks=(BlockRule("r", "+43900", "fraud"),),
)


async def entries(client: redis.asyncio.Redis) -> list[dict[str, str]]:
    found = await client.xrange(store.LOG)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


async def until(condition: Callable[[], bool], within_s: float = 40) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "condition was not met in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(client: redis.asyncio.Redis) -> AsyncIterator[tuple[list[Snapshot], list[str]]]:
    """Snapshots in the order they came in, and problems."""
    found: list[Snapshot] = []
    problems: list[str] = []
    task = asyncio.create_task(store.watch(client, found.append, known=PROFILES, on_problem=problems.append))
    try:
        await until(lambda: bool(found))
        yield found, problems
        assert not task.done(), task
    finally:
        await ended(task)


async def test_load_of_empty_store_is_an_empty_snapshot(client: redis.asyncio.Redis) -> None:
    found = await store.load(client)
    assert (found.version, dict(found.lines), found.blocks) == (0, {}, ())
    assert set(found.profiles) == {"velbert", "badnauheim"}


async def test_apply_then_load_gives_the_data(client: redis.asyncio.Redis) -> None:
    assert await store.apply(client, FIRST, who="operator", why="start") == 1
    found = await store.load(client)
    assert found.version == 1
    assert dict(found.lines) == {"L1": FIRST.lines[0], "L2": FIRST.lines[1]}
    assert dict(found.accounts) == {"a1": FIRST.accounts[0]}
    assert found.blocks == FIRST.blocks
    assert [route.uri for route in found.psap["town", "112"]] == ["sip:112@a", "sip:112@b"]
    owner = found.account_of("+4920517775")
    assert owner is not None
    assert owner.user == "a1"
    assert await client.hkeys(store.TABLES["numbers"]) == [b"+492051988111", b"+492051777*"]


async def test_apply_removal_leaves_nothing(client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    change = Change(
        remove_lines=("L1", "L2"),
        remove_psap=tuple((place, service) for place in ("town", "*") for service in ("110", "112")),
        remove_blocks=("r",),
    )
    assert await store.apply(client, change, who="operator", why="end") == 2
    assert sorted(await client.keys("*")) == [store.LOG.encode()]


async def test_apply_writes_a_chained_log(client: redis.asyncio.Redis) -> None:
    before = time.time_ns() // 1_000_000
    await store.apply(client, FIRST, who="operator", why="start")
    await store.apply(client, Change(lines=(line("L2", status=LineStatus.BARRED_OUT),)), who="billing", why="unpaid")
    first, second = await entries(client)
    assert (first["version"], second["version"], second["who"], second["why"]) == ("1", "2", "billing", "unpaid")
    assert before <= int(first["when"]) <= int(second["when"]) <= time.time_ns() // 1_000_000
    assert (first["previous"], second["previous"]) == ("", store.entry_hash(first))
    assert json.loads(second["before"])["lines"]["L2"]["status"] == "active"
    assert json.loads(second["after"])["lines"]["L2"]["status"] == "barred_out"
    assert "aaaaaaaa" not in str((first, second))


async def test_apply_of_another_lines_number_changes_nothing(client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    before = await store.load(client)
    stolen = Change(
        lines=(line("L3", "c1"),),
        accounts=(account("c1", "L3", "+492051988111", "+492051777*"),),
        blocks=(BlockRule("s", "+44", "x"),),
    )
    with pytest.raises(PolicyError) as raised:
        await store.apply(client, stolen, who="operator", why="mistake")
    assert [fault.reason for fault in raised.value.faults] == [
        "+492051988111 taken by account a1 of line L1",
        "+492051777* taken by account a1 of line L1",
    ]
    with pytest.raises(PolicyError, match="taken by line L1"):
        await store.apply(client, Change(lines=(line("L2", "a1"),), accounts=(account("a1", "L2"),)), who="x", why="y")
    assert await store.load(client) == before
    assert len(await entries(client)) == 1


async def test_apply_to_a_key_of_another_type_changes_nothing(client: redis.asyncio.Redis) -> None:
    await client.set(store.TABLES["blocks"], "not a hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.apply(client, Change(lines=(line("L1"),)), who="x", why="y")
    assert await client.keys("*") == [store.TABLES["blocks"].encode()]


async def test_apply_on_a_full_store_changes_nothing(client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    before = await store.load(client)
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
            await store.apply(client, Change(lines=(line("L3"),)), who="x", why="y")
    finally:
        await client.config_set("maxmemory", 0)
    assert await store.load(client) == before


async def test_apply_of_many_at_once_makes_every_change_once(client: redis.asyncio.Redis) -> None:
    changes = [store.apply(client, Change(lines=(line(f"L{n}"),), psap=EVERYWHERE), who=str(n), why="") for n in range(8)]
    assert sorted(await asyncio.gather(*changes)) == list(range(1, 9))
    assert len((await store.load(client)).lines) == 8
    log = await entries(client)
    assert [entry["previous"] for entry in log[1:]] == [store.entry_hash(entry) for entry in log[:-1]]


async def test_apply_of_one_number_by_two_lines_at_once_gives_it_to_one(client: redis.asyncio.Redis) -> None:
    changes = (
        store.apply(
            client,
            Change(lines=(line(f"L{n}", f"u{n}"),), accounts=(account(f"u{n}", f"L{n}", "+49205155555"),), psap=EVERYWHERE),
            who="",
            why="",
        )
        for n in range(6)
    )
    found = await asyncio.gather(*changes, return_exceptions=True)
    assert sorted(isinstance(result, PolicyError) for result in found) == [False, *[True] * 5]
    snapshot = await store.load(client)
    assert len(snapshot.lines) == len(snapshot.accounts) == len(snapshot.numbers) == 1


async def test_apply_sent_twice_is_made_once(client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply can be lost, and the client library sends a command again."""
    send = client.eval

    async def twice(*arguments: object) -> object:
        await send(*arguments)  # type: ignore[arg-type, misc]
        return await send(*arguments)  # type: ignore[arg-type, misc]

    monkeypatch.setattr(client, "eval", twice)
    assert await store.apply(client, FIRST, who="operator", why="start") == 1
    assert len(await entries(client)) == 1


async def test_watch_gives_each_change_by_itself(client: redis.asyncio.Redis) -> None:
    async with watching(client) as (found, problems):
        for version in range(1, 6):
            await store.apply(client, Change(lines=(line(f"L{version}"),), psap=EVERYWHERE), who="x", why="y")
            await until(lambda version=version: found[-1].version == version)  # type: ignore[misc]
            assert len(found[-1].lines) == version
        assert [snapshot.version for snapshot in found] == list(range(6))
        assert problems == []


async def test_watch_never_sees_half_a_change(client: redis.asyncio.Redis) -> None:
    async with watching(client) as (found, _):
        for generation in range(20):
            users = [f"u{n}" for n in range(20)]
            change = Change(
                lines=(line("L1", *users),),
                accounts=tuple(account(user, "L1", f"+49205{generation:02}{n:04}") for n, user in enumerate(users)),
                psap=EVERYWHERE,
            )
            await store.apply(client, change, who="x", why="y")
        await until(lambda: found[-1].version == 20)
        for snapshot in found[1:]:
            generations = {number[6:8] for number in snapshot.numbers}
            assert len(snapshot.numbers) == 20
            assert len(generations) == 1
            assert snapshot.version == int(generations.pop()) + 1


async def test_watch_keeps_the_last_snapshot_while_the_store_is_stopped(valkey: Server, client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    impatient = redis.asyncio.Redis(unix_socket_path=valkey.socket, socket_timeout=0.3, socket_connect_timeout=0.3, retry=None)
    async with watching(impatient) as (found, problems):
        valkey.signal(signal.SIGSTOP)
        try:
            await until(lambda: bool(problems))
        finally:
            valkey.signal(signal.SIGCONT)
        await until(lambda: problems[-1] == "")
        assert [snapshot.version for snapshot in found] == [1]
        await store.apply(client, Change(lines=(line("L9"),)), who="x", why="y")
        await until(lambda: found[-1].version == 2)
    await impatient.aclose()


async def test_watch_resubscribes_after_a_restart_and_catches_up(valkey: Server, client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    async with watching(client) as (found, problems):
        valkey.stop()
        await until(lambda: bool(problems))
        assert [snapshot.version for snapshot in found] == [1]
        valkey.start()
        other = redis.asyncio.Redis(unix_socket_path=valkey.socket)
        await store.apply(other, Change(lines=(line("L9"),)), who="x", why="y")
        await until(lambda: found[-1].version == 2)
        await other.aclose()
        await until(lambda: problems[-1] == "")


async def test_watch_keeps_the_last_snapshot_when_the_store_was_emptied(client: redis.asyncio.Redis) -> None:
    async with watching(client) as (found, problems):
        await store.apply(client, FIRST, who="operator", why="start")
        await until(lambda: found[-1].version == 1)
        await client.flushall()
        await until(lambda: bool(problems))
        assert "BrokenHistory" in problems[-1]
        for name in ("a", "b", "c"):
            await store.apply(client, Change(blocks=(BlockRule(name, "+44", "x"),)), who="x", why="y")
        await asyncio.sleep(1.2)  # longer than a poll: nothing may come
        assert [snapshot.version for snapshot in found] == [0, 1]


async def test_watch_waits_for_a_value_that_it_can_read(client: redis.asyncio.Redis) -> None:
    await store.apply(client, FIRST, who="operator", why="start")
    good = await client.hget(store.TABLES["lines"], "L1")
    assert isinstance(good, bytes)
    await client.hset(store.TABLES["lines"], "L1", b"\xc1broken")
    found: list[Snapshot] = []
    problems: list[str] = []
    task = asyncio.create_task(store.watch(client, found.append, known=PROFILES, on_problem=problems.append))
    await until(lambda: bool(problems))
    assert "DecodeError" in problems[0]
    assert not found
    await client.hset(store.TABLES["lines"], "L1", good)
    await until(lambda: bool(found))
    assert "L1" in found[0].lines
    await ended(task)


async def test_watch_reads_only_what_was_changed(client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be read stands in nobody's way who does not ask for it; and 50,000 lines are not read for one."""
    await store.apply(client, FIRST, who="operator", why="start")
    async with watching(client) as (found, problems):
        send = client.eval

        async def breaking(*arguments: object) -> object:
            await client.hset(store.TABLES["lines"], "L1", b"\xc1broken")
            return await send(*arguments)  # type: ignore[arg-type, misc]

        monkeypatch.setattr(client, "eval", breaking)
        await store.apply(client, Change(lines=(line("L9"),), remove_blocks=("r",)), who="x", why="y")
        await until(lambda: found[-1].version == 2)
        assert set(found[-1].lines) == {"L1", "L2", "L9"}
        assert found[-1].blocks == ()
        assert problems == []


@pytest.mark.parametrize("protocol", [2, 3])
async def test_watch_understands_both_protocols(valkey: Server, client: redis.asyncio.Redis, protocol: int) -> None:
    other = redis.asyncio.Redis(unix_socket_path=valkey.socket, protocol=protocol)
    async with watching(other) as (found, problems):
        await store.apply(other, FIRST, who="x", why="y")
        await until(lambda: found[-1].version == 1)
        await store.apply(client, Change(lines=(line("L9"),)), who="x", why="y")
        await until(lambda: found[-1].version == 2)
        assert problems == []
    await other.aclose()
