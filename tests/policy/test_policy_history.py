"""The change log: exact and without secrets, chained, and the way back; a store that lost its data is filled again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from policy_samples import PROFILES
from policy_valkey import ended

from policy import diff, history, store
from policy.change import Change
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.table import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis.asyncio

EVERYWHERE = tuple(PsapRoute("*", service, 1, f"sip:{service}@a") for service in ("110", "112"))


def line(key: str, *accounts: str) -> Line:
    return Line(key, "velbert", LineStatus.ACTIVE, None, "town", "02051", accounts)


def account(user: str, owner: str, number: str, secret: str = "5ec2e7") -> Account:
    return Account(user, owner, AccountKind.SINGLE, {"MD5": secret * 5 + "00"}, (number,))


FIRST = Change(
    lines=(line("L1", "a1"),),
    accounts=(account("a1", "L1", "+492051988111"),),
    psap=EVERYWHERE,
    blocks=(BlockRule("r1", "+43", "fraud"), BlockRule("r2", "+44", "fraud")),
)


async def make(client: redis.asyncio.Redis, *changes: Change) -> Snapshot:
    for number, change in enumerate(changes, 1):
        await store.apply(client, change, who="operator", why=f"change {number}")
    return await store.load(client, known=PROFILES)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "condition was not met in time"
        await asyncio.sleep(0.01)


async def test_log_holds_who_when_why_and_exactly_what_was_changed(client: redis.asyncio.Redis) -> None:
    barred = replace(line("L1", "a1"), status=LineStatus.BARRED_OUT, status_reason="unpaid")
    change = Change(lines=(barred,), blocks=(BlockRule("r1", "+43", "fraud, again"), FIRST.blocks[1]), remove_blocks=("r3",))
    await make(client, FIRST, change)
    first, second = await store.log_of(client)
    assert (second.version, second.who, second.why) == (2, "operator", "change 2")
    assert 0 <= time.time_ns() // 1_000_000 - second.when_ms < 60_000
    assert second.sides is not None
    before, after = second.sides
    assert (before.lines, after.lines) == ({"L1": line("L1", "a1")}, {"L1": barred})
    assert (before.blocks, after.blocks) == ({"r1": FIRST.blocks[0]}, {"r1": change.blocks[0]})  # r2 stayed as it was
    assert (dict(before.accounts), dict(after.accounts)) == ({}, {})
    assert first.counts == {
        "lines": {"added": 1},
        "accounts": {"added": 1},
        "psap": {"added": 2},
        "blocks": {"added": 2},
    }
    assert second.counts == {"lines": {"changed": 1}, "blocks": {"changed": 1}}
    assert [diff.words_of(found) for found in diff.differences(before, after)] == [
        "~ line L1: status active -> barred_out, status_reason none -> unpaid",
        "~ rule r1: reason fraud -> fraud, again",
    ]


async def test_log_never_holds_a_secret_but_says_that_one_was_set(client: redis.asyncio.Redis) -> None:
    await make(client, FIRST, Change(accounts=(account("a1", "L1", "+492051988111", "0dd5ec"),)))
    raw = str(await client.xrange(store.LOG))
    assert "5ec2e7" not in raw
    assert "0dd5ec" not in raw
    entry = (await store.log_of(client))[-1]
    assert entry.sides is not None
    [found] = diff.differences(*entry.sides)
    assert diff.words_of(found) == "~ account a1: password none -> set anew"


async def test_what_changes_nothing_makes_no_version(client: redis.asyncio.Redis) -> None:
    before = await make(client, FIRST)
    outcome = await store.submit(client, FIRST, who="x", why="again")
    assert (outcome.version, outcome.plan.items) == (1, ())
    outcome = await store.submit(client, Change(remove_blocks=("r1",)), who="x", why="look", dry_run=True)
    assert (outcome.version, [item.key for item in outcome.plan.items]) == (1, ["r1"])
    assert await store.load(client, known=PROFILES) == before


async def test_large_change_is_one_bounded_entry_and_exact(client: redis.asyncio.Redis) -> None:
    count = 10_000
    lines = tuple(line(f"L{n}", f"a{n}") for n in range(count))
    accounts = tuple(account(f"a{n}", f"L{n}", f"+492051{2_000_000 + n}") for n in range(count))
    rules = tuple(BlockRule(f"r{n}", f"+43{10_000 + n}", "fraud") for n in range(200))
    await make(client, FIRST, Change(lines, accounts, blocks=rules))
    raw = await client.xrevrange(store.LOG, count=1)
    assert raw
    size = sum(len(value) for value in raw[0][1].values())
    assert size < 40 * count  # bytes for a line with its account and number
    await make(client, Change(lines=(replace(lines[5], channels=9), *lines[6:])))
    *_, large, small = await store.log_of(client)
    assert large.sides is not None
    assert small.sides is not None
    assert large.sides[1].lines == {item.id: item for item in lines if item.id != "L1"}  # which was there
    assert list(small.sides[1].lines) == ["L5"]
    now = await store.load(client, known=PROFILES)
    entries = await store.log_of(client)
    change = history.return_to(1, entries, now, everything=False)
    outcome = await store.submit(client, change, who="operator", why="back")
    assert {item.key for item in outcome.plan.items} == {rule.id for rule in rules}
    assert (await store.load(client)).blocks == FIRST.blocks


async def test_return_to_each_version_restores_the_rules_exactly(client: redis.asyncio.Redis) -> None:
    seen = {}
    changes = (
        FIRST,
        Change(remove_blocks=("r1",)),
        Change(blocks=(BlockRule("r1", "+45", "other"), BlockRule("r3", "+46", "new"))),
        Change(lines=(replace(line("L1", "a1"), channels=2),)),
        Change(remove_blocks=("r2", "r3")),
    )
    for change in changes:
        found = await make(client, change)
        seen[found.version] = found
    for version in (3, 1, 4, 2, 5):
        now = await store.load(client, known=PROFILES)
        change = history.return_to(version, await store.log_of(client), now, everything=False)
        await store.apply(client, change, who="operator", why=f"back to {version}")
        found = await store.load(client, known=PROFILES)
        assert found.blocks == seen[version].blocks
        assert found.lines == seen[5].lines  # the lines are not the block list's


async def test_return_of_everything_needs_the_passwords_of_then(client: redis.asyncio.Redis) -> None:
    first = await make(client, FIRST)
    now = await make(client, Change(lines=(replace(line("L1", "a1"), channels=2),), remove_psap=(("town", "110"),)))
    change = history.return_to(1, await store.log_of(client), now, everything=True)
    await store.apply(client, change, who="operator", why="back")
    found = await store.load(client, known=PROFILES)
    assert replace(found, version=1) == first
    for lost in (
        Change(accounts=(account("a1", "L1", "+492051988111", "0dd5ec"),)),
        Change(remove_lines=("L1",)),
    ):
        now = await make(client, lost)
        with pytest.raises(PolicyError, match="passwords that these accounts had then are kept nowhere: a1"):
            history.return_to(1, await store.log_of(client), now, everything=True)
        rules = history.return_to(1, await store.log_of(client), now, everything=False)
        assert not rules.lines


async def test_return_refuses_what_the_log_cannot_say(client: redis.asyncio.Redis) -> None:
    now = await make(client, FIRST, Change(remove_blocks=("r1",)), Change(remove_blocks=("r2",)))
    entries = await store.log_of(client)
    for version, reason in ((4, "there is no version 4"), (-1, "there is no version -1")):
        with pytest.raises(PolicyError, match=reason):
            history.return_to(version, entries, now, everything=False)
    with pytest.raises(PolicyError, match="the log ends with 2, the newest version is 3"):
        history.return_to(1, entries[:-1], now, everything=False)
    with pytest.raises(PolicyError, match="does not hold every change"):
        history.return_to(0, entries[1:], now, everything=False)
    forged = history.entry_of({**entries[1].fields, "why": "nothing to see here"})
    with pytest.raises(PolicyError, match="not what was written"):
        history.return_to(1, [entries[0], forged, entries[2]], now, everything=False)
    old = history.entry_of({name: text for name, text in entries[-1].fields.items() if name != "format"})
    with pytest.raises(PolicyError, match="cannot be read"):
        history.return_to(2, [*entries[:-1], old], now, everything=False)
    await client.hdel(store.TABLES["blocks"], "r2")
    await client.hset(store.TABLES["blocks"], "x", b"\x83\xa2id\xa1x\xa5value\xa2+4\xa6reason\xa1y")
    behind = await store.load(client, known=PROFILES)
    changed = history.return_to(2, entries, behind, everything=False)
    assert changed.remove_blocks == ()  # what nobody logged is not touched by it


async def test_chain_shows_an_entry_that_was_changed_or_taken_out(client: redis.asyncio.Redis) -> None:
    await make(client, FIRST, *(Change(blocks=(BlockRule(f"x{n}", f"+4{n}1", "y"),)) for n in range(3, 8)))
    entries = await store.log_of(client)
    assert history.broken_links(entries) == []
    for position in range(len(entries) - 1):
        forged = history.entry_of({**entries[position].fields, "who": "somebody else"})
        found = history.broken_links([*entries[:position], forged, *entries[position + 1 :]])
        assert any(f"version {position + 2} does not follow version {position + 1}" in text for text in found)
        if position:
            assert history.broken_links([*entries[:position], *entries[position + 1 :]])
    assert history.broken_links(entries[2:]) == []  # older ones may have been trimmed


async def test_line_without_routes_is_not_activated_nor_left_behind(client: redis.asyncio.Redis) -> None:
    places = {"line L1": ("lines.csv", 7)}
    alone = Change(lines=(line("L1", "a1"),), accounts=FIRST.accounts, rows=places)
    with pytest.raises(PolicyError) as raised:
        await store.submit(client, alone, who="x", why="y")
    [fault] = raised.value.faults
    assert (fault.file, fault.row, fault.column) == ("lines.csv", 7, "location")
    assert "no PSAP route for 110 and 112" in fault.reason
    resting = replace(alone, lines=(replace(line("L1", "a1"), status=LineStatus.TERMINATED),))
    await store.apply(client, resting, who="x", why="y")
    with pytest.raises(PolicyError, match="110 and 112"):
        await store.apply(client, Change(lines=(line("L1", "a1"),)), who="x", why="y")
    with pytest.raises(PolicyError, match="no PSAP route for 110"):
        await store.apply(client, Change(lines=(line("L1", "a1"),), psap=EVERYWHERE[1:]), who="x", why="y")
    await store.apply(client, Change(lines=(line("L1", "a1"),), psap=EVERYWHERE), who="x", why="y")
    with pytest.raises(PolicyError, match="1 lines would have no way to 112, L1 first"):
        await store.apply(client, Change(remove_psap=(("*", "112"),)), who="x", why="y")
    await store.apply(client, Change(remove_lines=("L1",), remove_psap=(("*", "112"),)), who="x", why="y")


async def test_rule_that_lint_calls_an_error_is_refused_and_a_warning_is_told(client: redis.asyncio.Redis) -> None:
    await make(client, FIRST)
    with pytest.raises(PolicyError, match="116117"):
        await store.apply(client, Change(blocks=(BlockRule("s", "service:116", "x"),)), who="x", why="y")
    outcome = await store.submit(client, Change(blocks=(BlockRule("r9", "+43", "again"),)), who="x", why="y")
    assert outcome.version == 2
    assert any("r9" in warning for warning in outcome.warnings)
    outcome = await store.submit(client, Change(blocks=(BlockRule("t", "+48", "fraud"),)), who="x", why="y")
    assert outcome.warnings == ()  # what was said before is not said again


async def test_reseed_fills_an_emptied_store_and_every_node_follows(client: redis.asyncio.Redis) -> None:
    found: list[Snapshot] = []
    problems: list[str] = []
    task = asyncio.create_task(store.watch(client, found.append, known=PROFILES, on_problem=problems.append))
    last = await make(client, FIRST, Change(remove_blocks=("r1",)), Change(blocks=(BlockRule("r3", "+46", "x"),)))
    await until(lambda: bool(found) and found[-1].version == 3)
    with pytest.raises(store.NothingLostError, match="version 3"):
        await store.reseed(client, last, who="operator", why="no need")
    await client.flushall()
    await make(client, Change(blocks=(BlockRule("wrong", "+47", "x"),)))  # somebody went on without noticing
    await until(lambda: bool(problems))
    assert found[-1].version == 3
    outcome = await store.reseed(client, last, who="operator", why="flushed", dry_run=True)
    assert outcome.version == 1
    assert outcome.plan.items
    outcome = await store.reseed(client, last, who="operator", why="flushed")
    assert outcome.version == 4
    assert await store.load(client, known=PROFILES) == replace(last, version=4)
    await until(lambda: found[-1].version == 4)
    await make(client, Change(remove_blocks=("r3",)))
    await until(lambda: found[-1].version == 5)
    assert found[-1].blocks == (FIRST.blocks[1],)
    assert history.broken_links(await store.log_of(client)) == []
    await ended(task)


async def test_watch_with_a_floor_does_not_take_an_emptied_store_for_new(client: redis.asyncio.Redis) -> None:
    last = await make(client, FIRST, Change(remove_blocks=("r1",)))
    await client.flushall()
    found: list[Snapshot] = []
    problems: list[str] = []
    task = asyncio.create_task(store.watch(client, found.append, known=PROFILES, on_problem=problems.append, floor=2))
    await until(lambda: bool(problems))
    assert "emptied" in problems[0]
    assert not found
    await store.reseed(client, last, who="operator", why="flushed")
    await until(lambda: bool(found))
    assert found[0] == replace(last, version=3)
    await ended(task)
