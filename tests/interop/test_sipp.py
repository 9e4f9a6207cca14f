"""SIPp against a real node: register, authenticated call, blocked call, third call, emergency call, incoming calls.

SIPp knows MD5 alone and writes `sip:HOST:PORT` as the digest's uri.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from loadtest.agents import Router, RouterAccount
from loadtest.network import DOMAIN, Network, md5_only
from loadtest.node import LineSpec, TrunkSpec
from loadtest.reconcile import compare
from loadtest.sipp_runner import Credentials, SippRun, run_sipp, start_sipp

pytestmark = pytest.mark.program("sipp")

FIXED = "03023125001"
NUMBER = "+49603255501"
CALLER = "+492214710004"
LINE = LineSpec("B2001", "b2001", "secret-b", NUMBER, channels=2)
ACCOUNT = Credentials(LINE.user, LINE.password)


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    network: Network = await start_network([md5_only(LINE)])
    return network


@pytest_asyncio.fixture
async def router(network: Network) -> AsyncIterator[SippRun]:
    """A SIPp that answers calls at the address that the account has registered from."""
    run = await start_sipp("answer", calls=None, port=await _registered_port(network))
    yield run
    if run.process.returncode is None:
        await run.stop()


async def register(network: Network, *, contact_port: int, port: int = 0) -> Any:
    keys = {"expires": "600", "contact_port": str(contact_port)}
    return await run_sipp("register", target=network.node.address, port=port, accounts=[ACCOUNT], keys=keys)


async def call(network: Network, name: str, dialled: str, **options: Any) -> SippRun:
    return await start_sipp(name, target=network.node.address, accounts=[ACCOUNT], keys={"dialled": dialled}, **options)


@asynccontextmanager
async def full_line(network: Network) -> AsyncIterator[list[str]]:
    """Both channels of the line in use, for as long as the block takes; the Call-IDs."""
    holder = Router("holder", network.ledger, RouterAccount(LINE.user, LINE.password, DOMAIN), network.node.address)
    network.routers.append(holder)
    await holder.open()
    held = [await (await holder.call(FIXED)).answered() for _ in range(2)]
    assert await network.slots("b2001", 2) == 2
    yield [call.call_id for call in held]
    for one in held:
        assert await one.hang_up() == 200


async def test_register_with_md5_is_answered_200_and_stored(network: Network) -> None:
    (await register(network, contact_port=5099)).check(1)
    assert await network.bindings("b2001", 1) == 1
    bindings = await network.store.client.hgetall("sp:{acct:b2001}:bindings")
    assert b"127.0.0.1:5099" in next(iter(bindings.values()))


async def test_register_with_a_wrong_password_stays_challenged(network: Network) -> None:
    keys = {"expires": "600", "contact_port": "5099"}
    wrong = Credentials(LINE.user, "not-it")
    result = await run_sipp("register", target=network.node.address, accounts=[wrong], keys=keys, receive_timeout_ms=1500)
    assert (result.successful, result.failed) == (0, 1)
    assert await network.store.client.exists("sp:{acct:b2001}:bindings") == 0


async def test_authenticated_call_is_answered_by_the_trunk_and_ended_with_bye(network: Network) -> None:
    run = await call(network, "call", FIXED, calls=5, rate=2, hold_ms=150)
    result = (await run.wait(30)).check(5)
    records = await network.records(5)
    assert compare(result.call_ids, records).ok, compare(result.call_ids, records)
    assert {(r.status, r.released_by, r.end_reason, r.trunk) for r in records} == {(200, "caller", "normal", "carrier")}
    assert all(100 <= r.billable_ms < 30_000 for r in records)
    assert network.trunk.received["INVITE"] == 5
    assert await network.slots("b2001", 0) == 0


async def test_session_timer_is_told_refreshed_and_refused_when_too_short(network: Network) -> None:
    """RFC 4028 §8: the carrier knows no timers, so the proxy speaks for it; SIPp checks what it is told."""
    run = await call(network, "session", FIXED, calls=3, rate=2, hold_ms=150)
    result = (await run.wait(30)).check(3)
    records = await network.records(3)
    assert compare(result.call_ids, records).ok, compare(result.call_ids, records)
    assert {(r.status, r.released_by, r.end_reason) for r in records} == {(200, "caller", "normal")}
    assert network.trunk.received["UPDATE"] == 3


async def test_prack_and_update_of_an_early_dialog_pass_between_two_sipps(start_network: Callable[..., Any]) -> None:
    """RFC 3262, RFC 3311: the carrier's reliable 183, its PRACK and an UPDATE before the answer, all along the route set."""
    carrier = await start_sipp("answer_prack", host="127.0.0.4", calls=3)
    route = TrunkSpec("carrier", (carrier.host, carrier.port), settings={"ping_s": 0})
    network: Network = await start_network([md5_only(LINE)], trunks=[route])
    run = await call(network, "prack", FIXED, calls=3, rate=2, hold_ms=150)
    result = (await run.wait(60)).check(3)
    (await carrier.wait(60)).check(3)
    records = await network.records(3)
    assert compare(result.call_ids, records).ok, compare(result.call_ids, records)
    assert {(r.status, r.released_by, r.end_reason) for r in records} == {(200, "caller", "normal")}
    assert all(r.ringing_at_ms is not None for r in records)
    assert await network.slots("b2001", 0) == 0


async def test_blocked_call_gets_403_and_a_record_and_never_reaches_the_trunk(network: Network) -> None:
    result = (await (await call(network, "refused", "09001234567")).wait(40)).check(1)
    records = await network.records(1)
    assert compare(result.call_ids, records).ok
    assert (records[0].verdict, records[0].status, records[0].end_reason) == ("deny", 403, "refused")
    assert records[0].canonical == "+499001234567"
    assert "INVITE" not in network.trunk.received


async def test_third_call_of_a_line_with_two_channels_gets_403(network: Network) -> None:
    async with full_line(network) as held:
        refused = (await (await call(network, "refused", FIXED)).wait(30)).check(1)
    assert network.trunk.received["INVITE"] == 2
    records = await network.records(3)
    assert compare([*held, *refused.call_ids], records).ok
    third = next(r for r in records if r.call_id == refused.call_ids[0])
    assert (third.verdict, third.status, third.cause) == ("deny", 403, 34)
    assert await network.slots("b2001", 0) == 0


@pytest.mark.parametrize("number", ["110", "112"])
async def test_emergency_call_from_a_live_binding_needs_no_challenge(network: Network, number: str) -> None:
    port = await _registered_port(network)
    run = await call(network, "emergency", number, port=port)
    result = (await run.wait(40)).check(1)
    records = await network.records(1)
    assert compare(result.call_ids, records).ok
    assert (records[0].verdict, records[0].canonical, records[0].status) == ("emergency", f"service:{number}", 200)
    assert records[0].slots_used is None
    assert network.psap.received["INVITE"] == 1


async def test_emergency_call_while_the_line_is_full_is_connected(network: Network) -> None:
    port = await _registered_port(network)
    async with full_line(network):
        (await (await call(network, "emergency", "112", port=port)).wait(30)).check(1)
        assert await network.slots("b2001", 2) == 2


async def test_incoming_call_reaches_the_registered_router(network: Network, router: SippRun) -> None:
    keys = {"dialled": NUMBER, "caller": CALLER}
    result = await run_sipp("trunk_call", target=network.node.address, host="127.0.0.2", calls=3, rate=2, keys=keys)
    result.check(3)
    assert (await router.stop(successful=3)).successful == 3
    records = await network.records(3)
    assert compare(result.call_ids, records).ok
    assert {(r.direction, r.line, r.status, r.canonical) for r in records} == {("incoming", "B2001", 200, NUMBER)}
    assert await network.slots("b2001", 0) == 0


async def test_incoming_call_to_a_full_line_gets_486(network: Network, router: SippRun) -> None:
    keys = {"dialled": NUMBER, "caller": CALLER}
    async with full_line(network):
        (await run_sipp("trunk_call_busy", target=network.node.address, host="127.0.0.2", keys=keys)).check(1)
    assert (await router.stop()).successful == 0


async def test_incoming_call_from_an_unknown_address_is_refused(network: Network, router: SippRun) -> None:
    keys = {"dialled": NUMBER, "caller": CALLER}
    result = await run_sipp("trunk_call", target=network.node.address, host="127.0.0.9", keys=keys)
    assert (result.successful, result.failed) == (0, 1)
    assert (await router.stop()).created == 0


async def _registered_port(network: Network) -> int:
    """A port from which the account registered, free again for the call that follows."""
    from loadtest.net import free_udp_port

    port = free_udp_port()
    (await register(network, contact_port=port, port=port)).check(1)
    return port
