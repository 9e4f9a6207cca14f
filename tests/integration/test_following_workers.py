"""An operator follows what is spread over the workers of a node: each message once, in the order of the wire."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import next_call
from loadtest.network import many_lines
from sipproxy.admin.control import ask, socket_path
from sipproxy.net.passed import without_credentials
from tests.integration.test_following import Follower, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.ua import Call, UserAgent

WORKERS = 3
LINES = many_lines(10, channels=40)
CALL_ID = re.compile(r"\ncall-id: *(\S+)", re.IGNORECASE)
HIDDEN = "*31%23"  # before a number: the callee gets nothing by which the caller could be followed


async def spread(start_network: Callable[..., Any]) -> tuple[Network, list[Router]]:
    """A node of several workers, and a router of each line; every other one has a connection, which is one worker's."""
    network: Network = await start_network(LINES, workers=WORKERS)
    return network, [await network.router(line.user, tcp=bool(number % 2)) for number, line in enumerate(LINES)]


def national(number: str) -> str:
    return "0" + number.removeprefix("+49")


async def call_all(caller: Router, network: Network, routers: Iterable[Router]) -> list[tuple[Call, Call]]:
    """Answered calls of one router to others, hidden, and to the trunk; both ends of each."""
    found = []
    for router in routers:
        call = await (await caller.call(HIDDEN + national(network.lines[router.user].number))).answered()
        found.append((call, await next_call(router)))
        call = await (await caller.call(HIDDEN + "03023125001")).answered()
        found.append((call, await next_call(network.trunk)))
    return found


async def hang_up(calls: list[tuple[Call, Call]]) -> None:
    for number, (caller, callee) in enumerate(calls):
        ending, ended = (caller, callee) if number % 2 else (callee, caller)
        assert await ending.hang_up() == 200
        await ended.wait_ended()


Row = tuple[str, tuple[str, int], str]


def seen_by(parties: Iterable[UserAgent], call_ids: set[str], marks: Iterable[int]) -> Counter[Row]:
    """What the parties sent and got within these calls, as the node has to have seen it; the mark of each is how much of what
    passed came before."""
    found: Counter[Row] = Counter()
    for party, mark in zip(parties, marks, strict=True):
        for way, _, data in itertools.islice(party.wire, mark, None):
            if any(call_id.encode() in data for call_id in call_ids):
                shown = without_credentials(data).decode("latin-1")
                found["in" if way == ">" else "out", (party.host, party.port), shown] += 1
    return found


def told(events: list[dict[str, Any]], call_ids: set[str]) -> Counter[Row]:
    messages = [event for event in events if event["kind"] == "message" and event["call_id"] in call_ids]
    return Counter((event["direction"], tuple(event["remote"]), event["data"]) for event in messages)


def in_turn(rows: Iterable[Row]) -> dict[tuple[str, ...], list[str]]:
    """What a party sent, or got, in each call, one after the other."""
    found: dict[tuple[str, ...], list[str]] = {}
    for way, place, data in rows:
        found.setdefault((way, str(place), CALL_ID.findall(data)[0]), []).append(data)
    return found


def heads(rows: Counter[Row]) -> list[str]:
    return [f"{way} {place} {data.splitlines()[0]}" for way, place, data in rows.elements()]


async def compared(follower: Follower, calls: list[tuple[Call, Call]], parties: list[UserAgent], marks: list[int]) -> None:
    """When the calls have ended: what was told is what the parties have seen of them, behind these marks, and in turn."""
    ids = {call.call_id for call, _ in calls}
    ended: set[str] = set()

    def all_ended(event: dict[str, Any]) -> bool:
        if event["kind"] == "ended":
            ended.add(event["call_id"])
        return ended >= ids and event["kind"] == "alive"

    await follower.until(all_ended)
    wanted, found = seen_by(parties, ids, marks), told(follower.events, ids)
    assert (heads(wanted - found), heads(found - wanted)) == ([], [])
    assert in_turn(found) == in_turn(wanted)


async def leave(follower: Follower) -> None:
    follower.process.terminate()
    await follower.process.wait()


@pytest.mark.parametrize("tcp", [False, True])
async def test_line_is_followed_with_each_message_once_whichever_worker_has_its_way(
    start_network: Callable[..., Any], tcp: bool
) -> None:
    network, routers = await spread(start_network)
    caller = routers[int(tcp)]
    follower = await started(network.node.config, network.lines[caller.user].line, "--minutes", "1")
    assert (await follower.until(lambda _: True))["kind"] == "begins"
    parties = [*routers, network.trunk]
    marks = [0 for _ in parties]
    calls = await call_all(caller, network, [router for router in routers if router is not caller])
    await hang_up(calls)
    await compared(follower, calls, parties, marks)
    await leave(follower)


async def test_call_is_followed_at_the_workers_that_do_not_have_it(start_network: Callable[..., Any]) -> None:
    network, routers = await spread(start_network)
    caller, *others = routers[1::2]
    parties = [*routers, network.trunk]
    for router in others:
        call = await (await caller.call(HIDDEN + national(network.lines[router.user].number))).answered()
        ends = [(call, await next_call(router))]
        (row,) = (await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), "calls"))["calls"]
        marks = [len(party.wire) for party in parties]
        follower = await started(network.node.config, row["id"], "--minutes", "1")
        assert (await follower.until(lambda _: True))["calls"] == [call.call_id]
        await hang_up(ends)
        await compared(follower, ends, parties, marks)
        await leave(follower)


def log_behind(network: Network, event: str) -> str:
    return network.node.log(tail=10**6).rpartition(event)[2]


async def test_worker_that_comes_back_is_followed_again(start_network: Callable[..., Any]) -> None:
    network, routers = await spread(start_network)
    caller, *others = routers[::2]  # whose way is no connection, and none of them dies
    follower = await started(network.node.config, network.lines[caller.user].line, "--minutes", "1")
    assert (await follower.until(lambda _: True))["kind"] == "begins"
    for pid in list(network.node.worker_pids().values())[1:]:
        os.kill(pid, signal.SIGKILL)
    await network.followed(network.node, "sipproxy_worker_restarts_total", WORKERS - 1)
    await network.followed(network.node, "sipproxy_worker_up", WORKERS)
    async with asyncio.timeout(30):
        while log_behind(network, "worker_died").count("watch_begins") < WORKERS - 1:  # noqa: ASYNC110  a log file has no event
            await asyncio.sleep(0.05)
    parties = [*others, caller, network.trunk]
    marks = [len(party.wire) for party in parties]
    calls = await call_all(caller, network, others * 2)  # so many that some are of a worker that came back
    await hang_up(calls)
    assert {record.node for record in await network.records(len(calls))} & {"node1-2", "node1-3"}
    await compared(follower, calls, parties, marks)
    await leave(follower)
