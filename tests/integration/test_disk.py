"""A real node whose disk fails: what was acknowledged stays, live calls are recorded, new ones are refused (design §8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.network import many_lines
from loadtest.reconcile import compare
from loadtest.ua import CallError
from tests.mounts import run_in_own_mounts

if TYPE_CHECKING:
    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.network import Network

DIALLED = "03023125001"
# Loaded by the node's interpreter at its start: a disk that fails at a moment of our choice cannot be had otherwise.
FAILING = """
import errno, os
from pathlib import Path
flag, fsync, write = Path({flag!r}), os.fsync, os.write
def failing(what, real, number):
    def call(*arguments):
        if flag.exists() and flag.read_text() == what:
            raise OSError(number, os.strerror(number))
        return real(*arguments)
    return call
os.fsync = failing("fsync", fsync, errno.EIO)
os.write = failing("write", write, errno.EROFS)
"""


async def refused(network: Network, router: Router) -> None:
    """New calls are refused with 503, as soon as the node has noticed."""
    for _ in range(50):
        call = await router.call(DIALLED)
        if await call.final(30) != 200:
            break
        await call.hang_up()
        await asyncio.sleep(0.3)  # a line may only set so many calls up in a minute
    with pytest.raises(CallError) as error:
        await (await router.call(DIALLED)).answered(30)
    assert error.value.status == 503
    emergency = await (await router.call("112")).answered(30)
    assert await emergency.hang_up() == 200


async def accepted(network: Network, router: Router) -> None:
    """New calls are taken again once the node is open."""
    await network.followed(network.node, "sipproxy_journal_failing", 0.0, timeout_s=30)
    for _ in range(50):
        call = await router.call(DIALLED)
        if await call.final(30) == 200:
            assert await call.hang_up() == 200
            return
        await asyncio.sleep(0.3)
    raise AssertionError(network.node.log())


async def reconciled(network: Network) -> list[Record]:
    """The records, once they are those of all calls, also of the ones that a closed node did not take."""
    placed = network.ledger.placed()
    records = await network.records(len(placed), timeout_s=30)
    result = compare(placed, records, tolerance_ms=2000)
    assert result.ok, result
    assert {(record.rule, record.verdict) for record in records if record.status == 503} <= {("node.disk", "deny")}
    return records


@pytest.mark.parametrize(("fault", "sync"), [("fsync", "group"), ("fsync", "wait"), ("write", "group")])
async def test_disk_that_fails_refuses_new_calls_and_loses_no_record(
    fault: str, sync: str, tmp_path: Path, start_network: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "fault"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAILING.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    network: Network = await start_network(many_lines(3), settings={"cdr": {"sync": sync}, "log": {"level": "warning"}})
    routers = [await network.router(f"u{number:06}") for number in range(3)]
    live = [await (await router.call(DIALLED)).answered(30) for router in routers[:2]]
    flag.write_text(fault)
    await refused(network, routers[2])
    await network.followed(network.node, "sipproxy_journal_failing", 1.0)
    assert await live[0].hang_up() == 200
    if fault == "fsync":  # The kernel took it all, and what the disk may lose is in the stream: nothing goes with the process.
        await network.records_when(lambda found: live[0].call_id in {record.call_id for record in found}, timeout_s=30)
        await network.node.kill()
        flag.unlink()
        await network.node.start()
    else:
        assert (await network.node.metrics())["sipproxy_journal_owed"] > 0
        flag.unlink()
    await accepted(network, routers[2])
    assert await live[1].hang_up() == 200
    metrics = await network.node.metrics()
    assert (metrics["sipproxy_journal_owed"], metrics["sipproxy_journal_lost_total"]) == (0, 0)
    records = await reconciled(network)
    assert "node.disk" in {record.rule for record in records}
    ends = {record.call_id: record for record in records}
    assert [ends[call.call_id].end_reason for call in live] == ["normal"] * 2
    assert ends[live[0].call_id].duration_certain


def test_node_on_disks_that_are_full_or_read_only() -> None:
    run_in_own_mounts(Path(__file__).with_name("disk_cases.py"))
