"""Two nodes on one store, seen by SIPp: a rule set at one refuses at the other, and a router of one is called by the other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from loadtest.net import free_udp_port
from loadtest.network import Network, md5_only
from loadtest.node import LineSpec
from loadtest.reconcile import compare
from loadtest.sipp_runner import Credentials, run_sipp, start_sipp
from tests.programs import run

pytestmark = pytest.mark.program("sipp")

ROOT = Path(__file__).resolve().parents[2]
LINE = md5_only(LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=20))
ACCOUNT = Credentials("b2001", "secret-b")
DIALLED = {"dialled": "+43123456789"}


async def test_rule_added_at_one_node_refuses_a_sipp_call_at_the_other(tmp_path: Path) -> None:
    async with (
        Network([LINE], directory=tmp_path / "one") as network,
        network.another_node(directory=tmp_path / "two") as other,
    ):
        (await run_sipp("call", target=other.address, accounts=[ACCOUNT], keys=DIALLED)).check(1)
        _, output, _ = await run(
            *(sys.executable, "-m", "sipproxy", "block", "add", "+43", "--reason", "fraud", "--id", "r"),
            *("-c", str(network.node.config), "--json"),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        version = json.loads(output)["version"]
        await network.followed(other, "sipproxy_policy_version", version)
        (await run_sipp("refused", target=other.address, accounts=[ACCOUNT], keys=DIALLED)).check(1)
        records = await network.records(2)
    assert [(r.node, r.status, r.rule) for r in records] == [("node2", 200, "allow"), ("node2", 403, "block.rule.r")]
    assert records[1].snapshot == version


async def test_call_held_by_both_sides_passes_through_the_node_with_the_routers_flow(tmp_path: Path) -> None:
    """The router is registered at one node, the carrier calls at the other; SIPp holds either way, and the router hangs up."""
    async with Network([LINE], directory=tmp_path / "one") as network, network.another_node() as holder:
        port = free_udp_port()
        keys = {"expires": "600", "contact_port": str(port)}
        (await run_sipp("register", target=holder.address, port=port, accounts=[ACCOUNT], keys=keys)).check(1)
        await network.followed(network.node, "sipproxy_registrations_elsewhere", 1)
        for node in (network.node, holder):
            await network.followed(node, "sipproxy_nodes", 2)
        router = await start_sipp("answer_hold", calls=2, port=port)
        keys = {"dialled": LINE.number, "caller": "+492214710004"}
        result = await run_sipp("trunk_hold", target=network.node.address, host="127.0.0.2", calls=2, rate=1, keys=keys)
        result.check(2)
        (await router.wait(60)).check(2)
        records = await network.records(2)
        assert await network.slots(LINE.user, 0) == 0
    assert compare(result.call_ids, records).ok
    assert {(r.node, r.direction, r.released_by, r.end_reason) for r in records} == {("node1", "incoming", "callee", "normal")}
