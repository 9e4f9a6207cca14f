"""The measuring program in its short form: nothing failed, no slot left, as many records as calls. `make` runs the long one."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from typing import Any

import pytest

needs_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed: apt-get install sip-tester")


async def measure(*arguments: str) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *arguments, "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, f"{output.decode()}\n{errors.decode()[-4000:]}"
    reports: list[dict[str, Any]] = json.loads(output)
    assert all(report["ok"] for report in reports)
    return reports


@needs_sipp
async def test_accounts_registered_by_sipp_are_all_stored() -> None:
    (report,) = await measure("register", "--accounts", "300", "--register-rate", "300")
    assert (report["registered"], report["stored"]) == (300, 300)


async def test_calls_at_a_rate_by_routers_all_succeed_and_are_recorded() -> None:
    (report,) = await measure("calls", "--accounts", "0", "--rate", "25", "--seconds", "3", "--hold", "0.5")
    assert (report["calls"], report["answered"], report["slots_left"]) == (75, 75, 0)
    assert report["cpu_s_per_1000"] > 0


@needs_sipp
async def test_calls_at_a_rate_by_sipp_all_succeed_and_are_recorded() -> None:
    options = ("--driver", "sipp", "--accounts", "0", "--rate", "25", "--seconds", "3", "--hold", "0.5")
    (report,) = await measure("calls", *options)
    assert (report["calls"], report["answered"], report["slots_left"]) == (75, 75, 0)


async def test_calls_of_every_kind_have_records_whose_every_field_is_the_truth() -> None:
    (report,) = await measure("fields", "--calls", "130", "--rate", "15")
    assert (report["calls"], report["records"] + report["shed"], report["different"]) == (130, 130, 0)
    assert report["fields"] > report["records"] * 30 > 0
    assert report["incoming_not_registered"] >= 3


async def test_cost_of_records_is_measured_and_none_is_lost() -> None:
    options = ("--calls", "200", "--waiting", "10", "--records", "1000", "--rate", "5", "--seconds", "3")
    journal, published, consumed, backlog = await measure("cdr", *options)
    assert 0 < journal["on_disk_p50_ms"] <= journal["on_disk_max_ms"]
    assert min(journal["group_cpu_us"], published["cpu_us"], consumed["cpu_us"], backlog["drain_per_s"]) > 0


async def test_strangers_that_flood_hinder_no_live_call_and_no_call_for_help() -> None:
    (report,) = await measure("flood", "--rate", "2000", "--seconds", "4", "--sources", "500")
    assert report["sent"] > 500, "a flood that is none shows nothing"
    assert report["answered_share"] >= 99.9
    assert report["helped"] == report["helps"] > 0


async def test_connections_that_send_next_to_nothing_hinder_nobody_and_are_counted() -> None:
    (report,) = await measure("slow", "--connections", "300", "--sources", "6", "--seconds", "6")
    assert report["open"] == 300
    assert report["options_answered"] == report["options"] > 20
    assert report["helped"] == report["helps"] > 0
    assert report['sipproxy_transport_total{transport="TLS",what="closed_handshake"}'] >= 80


async def test_routers_that_all_register_at_once_are_all_registered_in_the_end() -> None:
    (report,) = await measure("storm", "--routers", "300", "--over", "1", "--calm", "3")
    assert report["registered"] == 300
    assert report["helped"] == report["helps"] > 0
