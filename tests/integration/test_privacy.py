"""Hidden callers through a real node: what the router gets, and what is kept of a malicious call (TDDDG §§ 9, 14, 15)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadtest.agents import next_call
from loadtest.node import LineSpec
from loadtest.reconcile import wait_until
from tests.programs import run

if TYPE_CHECKING:
    from loadtest.network import Network

V1001 = LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert")
B2001 = LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=2)
HIDDEN = "+493023125077"
ORDER = "2020-01-01/2099-01-01/case-12"


async def sipproxy(network: Network, *arguments: str) -> Any:
    """What a command says with --json."""
    status, output, errors = await run(sys.executable, "-m", "sipproxy", *arguments, "--json", "-c", str(network.node.config))
    assert status == 0, errors.decode()
    return json.loads(output)


async def test_malicious_call_is_recorded_for_its_order_alone(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([V1001, B2001])
    router = await network.router("v1001")
    columns = "line,profile,status,channels,location,area_code,account,kind,password,number,account_channels,traces"
    cells = [*V1001.row(), ORDER]
    file = network.node.directory / "traced.csv"
    file.write_text(f"{columns}\n{','.join(cells)}\n")
    await sipproxy(network, "line", "import", str(file), "--why", "case-12")
    assert await wait_until(lambda: '"version": 2, "lines"' in network.node.log())

    call = await network.trunk.call(V1001.number, network.node.address, caller=HIDDEN, headers=[(b"Privacy", b"id")])
    await call.answered()
    arrived = await next_call(router)
    assert arrived.server is not None
    assert arrived.server.request.from_.uri.host == b"anonymous.invalid"
    assert HIDDEN[3:].encode() not in arrived.server.request.raw
    assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    (record,) = records
    assert (record.calling, record.presented, record.privacy) == ("", "", "id")

    (kept,) = await sipproxy(network, "trace", "list", "--line", "V1001", "--why", "police request 7")
    assert (kept["network"], kept["reference"], kept["call"]) == (HIDDEN, "case-12", record.id)
    assert await sipproxy(network, "trace", "list", "--line", "B2001", "--why", "police request 7") == []
    accesses = await sipproxy(network, "trace", "accesses")
    assert [(access["line"], access["why"]) for access in accesses] == [
        ("V1001", "police request 7"),
        ("B2001", "police request 7"),
    ]
    assert HIDDEN[3:] not in network.node.log()


async def test_customer_calls_another_one_without_being_seen(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([V1001, B2001])
    caller, callee = await network.router("b2001"), await network.router("v1001")
    call = await (await caller.call("*31%2302051555101")).answered()
    arrived = await next_call(callee)
    assert arrived.server is not None
    request = arrived.server.request
    assert request.from_.uri.raw == b"sip:anonymous@anonymous.invalid"
    assert request.first(b"privacy") == b"id"
    assert b"b2001@" not in request.raw, "Call-ID and tags are the caller's own doing; From and Contact are ours"
    assert b"03255501" not in request.raw
    assert await arrived.hang_up() == 200
    await call.wait_ended()
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].calling, records[0].direction, records[0].released_by) == (B2001.number, "internal", "callee")


async def test_call_of_a_hidden_caller_outlives_its_node_and_stays_hidden(start_network: Callable[..., Any]) -> None:
    """kill -9 and restart: requests of both parties pass, nothing to the router or on the node's disk holds the number."""
    network: Network = await start_network([V1001])
    router = await network.router("v1001")
    call = await network.trunk.call(V1001.number, network.node.address, caller=HIDDEN, headers=[(b"Privacy", b"id")])
    await call.answered()
    arrived = await next_call(router)
    await network.node.kill()
    journal = b"".join(file.read_bytes() for file in (network.node.directory / "data").rglob("*.cdrj"))
    assert call.call_id.encode() in journal
    await network.node.start()
    assert (await call.request(b"INFO", [(b"X-Number", HIDDEN.encode())])).status == 200
    assert (await arrived.request(b"INFO")).status == 200
    assert await arrived.hang_up() == 200
    assert await wait_until(call.ended.is_set)
    heard = b"".join(data for way, _, data in router.wire if way == "<")
    assert b"INFO" in heard
    assert HIDDEN[3:].encode() not in heard + journal
    records, result = await network.reconciled()
    assert result.ok, result
    assert [(r.end_reason, r.released_by, r.calling, r.presented) for r in records] == [("normal", "callee", "", "")]
