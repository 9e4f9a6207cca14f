"""One worker of a node has a file system of its own, which is full (design §8).

Not collected by itself: test_worker_disks.py runs it in a mount namespace of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disk_cases import fill_up
from test_disk import reconciled
from test_worker_disks import LINES, live_calls, mended, metric, spoilt

from tests.mounts import mounted

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.network import Network


async def test_full_disk_of_one_worker_refuses_its_new_calls_and_records_live_ones(
    tmp_path: Path, start_network: Callable[..., Any]
) -> None:
    data = tmp_path / "node" / "data"
    data.mkdir(parents=True)
    with mounted(data / "worker-2", "16m") as disk:
        settings = {"cdr": {"segment_bytes": 262_144}}
        network: Network = await start_network(LINES, workers=2, directory=data.parent, settings=settings)
        routers = [await network.router(line.user) for line in LINES]
        live = await live_calls(network, routers)
        fill_up(disk / "filler")
        await spoilt(network, routers)
        assert await metric(network, 'sipproxy_journal_disk{state="full"}') == [0, 1]
        for first, second in live.values():
            assert await first[0].hang_up() == 200
            assert await second[1].hang_up() == 200
        told = [json.loads(line) for line in network.node.log_path.read_text().splitlines() if '"journal_disk"' in line]
        assert [line["state"] for line in told if line["node"] == "node1-2"][-1] == "full"
        (disk / "filler").unlink()
        await mended(network, routers)
        records = await reconciled(network)
        assert {record.node for record in records if record.rule == "node.disk"} == {"node1-2"}
        assert await metric(network, "sipproxy_journal_lost_total") == [0, 0]
        await network.stop_node()
