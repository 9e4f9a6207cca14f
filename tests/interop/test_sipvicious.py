"""SIPVicious' svwar and svcrack against a real node: no account found, guesses as configured, the router at home all the while.

svcrack knows MD5 alone, so the accounts are stored as MD5 hashes, which the node then offers nothing else for. svwar first asks
for names of its own making and then calls a name found whose answer differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Router, RouterAccount
from loadtest.network import DOMAIN, md5_only
from loadtest.node import LineSpec
from tests.interop.sipvicious_driver import sipvicious

if TYPE_CHECKING:
    from loadtest.network import Network

SPECS = [LineSpec(f"S{n}", f"1{n:02}", f"right-{n}", f"+49603255{n:04}") for n in (17, 42, 86)]
NAMES = [f"{n}" for n in range(100, 200)]  # three of them are accounts
GUESSES, TRIED = 20, 60
LIMITS = {"guesses_pair": GUESSES, "guess_window_s": 86400}
WRONG, LIMITED = 'auth_failures_total{why="wrong"}', 'auth_failures_total{why="limited"}'
PROVEN = 'responses_total{method="REGISTER",status="403"}'


async def svcrack(network: Network, line: LineSpec, dictionary: str) -> str:
    """From the router's own address, as behind one NAT. Its Contact is the domain that it attacks, which is refused by 403."""
    host, port = network.node.address
    options = ["-u", line.user, "-b", host, "-P", "0", "--domain", DOMAIN, "--maximumtime", "3"]
    return await sipvicious("svcrack", *options, "-d", dictionary, f"udp://{host}:{port}")


def words(path: Path, found: list[str]) -> str:
    path.write_text("".join(f"{word}\n" for word in found))
    return str(path)


async def counted(network: Network, *metrics: str) -> list[float]:
    found = await network.node.metrics()
    return [found.get(f"sipproxy_{metric}", 0.0) for metric in metrics]


@pytest.mark.parametrize("method", ["REGISTER", "INVITE", "OPTIONS"])
async def test_svwar_finds_none_of_three_accounts_among_a_hundred_names(
    start_network: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    """An account with an MD5 hash alone, one with all, one of a barred line. svwar stops at a challenge that is as that for
    the name that it made up, so it is started with each account as the first of its hundred names."""
    barred = LineSpec("S86", "186", "right-86", "+496032550086", status="barred_full")
    network: Network = await start_network([md5_only(SPECS[0]), SPECS[1], barred])
    host, port = network.node.address
    # --force: go on although a name that was made up is challenged too, where it would give up before it asked for any.
    options = ["-m", method, "-b", host, "-P", "0", "--force", "--maximumtime", "2", "--domain", DOMAIN]
    runs = []
    for account in ("117", "142", "186"):
        names = words(tmp_path / account, [account, *(name for name in NAMES if name != account)])
        runs.append(sipvicious("svwar", *options, "-d", names, f"udp://{host}:{port}"))
    outputs = await asyncio.gather(*runs)
    asked = (await network.node.metrics()).get(f'sipproxy_requests_total{{method="{method}"}}', 0.0)
    assert asked >= (3 * len(NAMES) if method == "OPTIONS" else 6), outputs
    for output in outputs:
        assert "found nothing" in output
        assert "exists" not in output


async def test_svcrack_gets_the_guesses_that_are_configured_and_the_router_registers_meanwhile(
    start_network: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    line = SPECS[0]
    network: Network = await start_network([md5_only(line)], settings={"limits": LIMITS})
    router = Router("home", network.ledger, RouterAccount(line.user, line.password, DOMAIN), network.node.address)
    network.routers.append(router)
    await router.open()
    assert (await router.register()).status == 200
    wrong = [f"wrong-{n}" for n in range(TRIED)]
    tried = asyncio.ensure_future(svcrack(network, line, words(tmp_path / "late", [*wrong, line.password])))
    worst = 0.0
    while not tried.done():
        began = time.monotonic()
        assert (await router.register(timeout_s=30.0)).status == 200
        worst = max(worst, time.monotonic() - began)
        await asyncio.sleep(0.1)
    output = await tried
    record_property("slowest_registration_s", round(worst, 3))
    print(f"slowest registration of the router during the attack: {worst * 1000:.0f} ms")
    wrong, limited, proven = await counted(network, WRONG, LIMITED, PROVEN)
    assert (wrong, proven) == (GUESSES, 0), output
    assert limited == TRIED + 1 - GUESSES, output


async def test_svcrack_with_the_right_password_among_the_guesses_allowed_finds_it(
    start_network: Callable[..., Any], tmp_path: Path
) -> None:
    """What shows that the other test's attack is one."""
    line = SPECS[0]
    network: Network = await start_network([md5_only(line)], settings={"limits": LIMITS})
    output = await svcrack(network, line, words(tmp_path / "early", ["wrong-1", line.password]))
    assert await counted(network, WRONG, PROVEN) == [1, 1], output
