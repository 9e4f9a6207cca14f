"""The measuring program in its short form: nothing failed, no slot left, as many records as calls. `make` runs the long one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from loadtest.peer import missing
from tests.programs import Done, run, running

BOUND_S = 90.0
ROOT = Path(__file__).resolve().parents[2]
needs_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed: apt-get install sip-tester")


async def measure(*arguments: str, status: int = 0, bound_s: float = BOUND_S) -> list[dict[str, Any]]:
    ended, output, errors = await run(sys.executable, "-m", "loadtest", *arguments, "--json", bound_s=bound_s)
    assert ended == status, f"{output.decode()}\n{errors.decode()[-4000:]}"
    reports: list[dict[str, Any]] = json.loads(output)
    assert all(report["ok"] for report in reports) is (status == 0)
    return reports


SHORT = """name = "short"
[load]
rate = 30
seconds = 3
[accounts]
count = 500
refresh_per_s = 5
register_per_s = 200
[calls]
ended_by_callee = 0.4
ring_s = 0.1
[hold]
mean_s = 0.3
at_most_s = 1
[shares]
answered = 0.3
incoming = 0.2
busy = 0.1
cancelled = 0.1
blocked = 0.1
over_limit = 0.05
emergency = 0.1
lost_bye = 0.05
[[storm]]
at_s = 1
accounts = 50
[node.calls]
probe_s = 1
session_expires_s = 0
"""


async def test_a_mix_of_calls_of_every_kind_ends_as_planned_and_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(SHORT)
    (report,) = await measure("mix", str(tmp_path / "short.toml"), "--plot", str(tmp_path / "short.svg"))
    kinds = ["answered_200", "incoming_200", "busy_486", "cancelled_487", "blocked_403", "over_limit_403", "emergency_200"]
    kinds.append("lost_bye_200")
    assert sum(report[kind] for kind in kinds) == report["calls"] > 60
    assert report["reconciled"] == "{0} attempts, {0} records".format(report["calls"] + 4)  # those that fill lines
    assert (report["failed"], report["slots_left"]) == (0, 0)
    assert report["registers"] >= 50
    assert min(report["cpu_s_per_1000"], report["own_cpu_s_per_1000"], report["invite_p50_ms"], report["answer_p99_ms"]) > 0
    assert "</svg>" in (tmp_path / "short.svg").read_text()


SMALLER = SHORT.replace("lost_bye = 0.05\n", "").replace("busy = 0.1", "busy = 0.15").replace("count = 500", "count = 150")


async def test_goodput_at_a_part_of_the_capacity_is_told_and_every_call_reconciled(tmp_path: Path) -> None:
    (tmp_path / "smaller.toml").write_text(SMALLER.replace("rate = 30", "rate = 10"))
    options = ("--capacity", "8", "--factor", "0.5", "--seconds", "3", "--plot", str(tmp_path / "goodput.png"))
    (report,) = await measure("goodput", "--mix", str(tmp_path / "smaller.toml"), *options)
    assert 0 < report["goodput"] <= report["offered"]
    assert 0 <= report["meanwhile"] <= report["offered"]
    assert report["helped"] == report["helps"]
    assert (tmp_path / "goodput.png").stat().st_size > 10_000


SOAKED = """name = "soaked"
[load]
rate = 8
seconds = 10
failed_at_most = 1.0
[accounts]
count = 150
register_per_s = 200
[calls]
ended_by_callee = 0.4
[hold]
mean_s = 1
at_most_s = 5
[shares]
answered = 0.5
incoming = 0.3
blocked = 0.1
emergency = 0.1
"""


@pytest.mark.timeout(220)
async def test_soak_of_a_node_that_dies_is_reloaded_and_loses_its_store_loses_no_record(tmp_path: Path) -> None:
    (tmp_path / "soaked.toml").write_text(SOAKED)
    slow = (
        "loading",
        "stopped",
        "slow",
        "read-only",
        "full",
        "misconf",
        "lost reply",
        "killed",
        "old copy",
        "parties vanished",
    )
    slow += ("policy edited", "connections broken")
    without = [word for kind in slow for word in ("--without", kind)]
    # This seed has the node die first: further troubles begin as far as there is time.
    options = ("--every", "0.2", "--seed", "28", *without)
    # A caller that had heard 100 or 180 of the node that died gives up 64*T1 and another 64*T1 later: 108 s in all.
    (report,) = await measure("soak", "--mix", str(tmp_path / "soaked.toml"), *options, bound_s=180)
    assert "node killed" in report["troubles"]
    assert report["cut"] > 0
    assert (report["slots_left"], report["calls_left"]) == (0, 0)
    assert report["descriptors_last"] > 5


async def test_a_mix_whose_calls_fail_ends_with_status_1_and_still_reconciles() -> None:
    options = ("--rate", "5", "--calls", "10", "--accounts", "100", "--set", "limits.calls=1")
    (report,) = await measure("mix", "yardstick", *options, status=1)
    assert 0 < report["failed"] == report["answered_503"] < report["calls"] == 10
    assert (len(report["faults"]), report["slots_left"]) == (1, 0)


@needs_sipp
@pytest.mark.skipif(bool(missing()), reason=missing())
async def test_node_and_kamailio_carry_the_same_calls_and_registrations_and_both_reconcile() -> None:
    options = ("--rate", "10", "--seconds", "2", "--rounds", "1", "--accounts", "100", "--search-minutes", "0")
    registers = ("--registers", "40", "--register-rate", "40")
    node, kamailio, ratio = await measure("compare", *options, *registers, "--workers", "1")
    assert (node["title"], ratio["title"]) == ("node, 1 worker", "node, 1 worker / kamailio")
    for key in ("calls_10_cpu_s_per_1000", "calls_10_setup_p50_ms", "registers_cpu_s_per_1000"):
        assert node[key] > 0, key
        assert kamailio[key] >= 0, key  # of so few it may be nothing in clock ticks
    assert kamailio["calls_10_setup_p99_ms"] > 0


@needs_sipp
async def test_comparison_whose_calls_the_node_refuses_names_them_and_ends_with_status_1() -> None:
    options = ("--node-alone", "--rate", "10", "--seconds", "1", "--rounds", "1", "--accounts", "100", "--workers", "1")
    less = ("--registers", "0", "--set", "limits.calls=1", "--search-minutes", "0")
    (node,) = await measure("compare", *options, *less, status=1)
    assert re.fullmatch(r"at 10 calls a second: [1-9] failed; .*", node["faults"][0], re.DOTALL)


@needs_sipp
async def test_interrupted_comparison_of_two_checkouts_tells_what_it_has() -> None:
    """Here both are the same one. The search goes on until it is interrupted, behind its first trial."""
    options = ("--node-alone", "--workers", "1", "--accounts", "100", "--registers", "0", "--rate", "10", "--seconds", "1")
    search = ("--rounds", "1", "--search-from", "5", "--search-seconds", "1", "--search-minutes", "60")
    command = (sys.executable, "-m", "loadtest", "compare", *options, *search, "--beside", str(ROOT), "--json")
    async with running(*command, bound_s=BOUND_S) as program:
        await program.says(b"5 calls a second go well")
        program.process.send_signal(signal.SIGINT)
        status, output, _ = await program.ended()
    assert status == 1
    node, beside, ratio = json.loads(output)
    assert (node["title"], beside["title"]) == ("node, 1 worker", f"{ROOT.name}, 1 worker")
    assert node["faults"] == ["interrupted: figures are of what was measured until then"]
    assert (node["highest"], beside["highest"], ratio["highest"]) == (5, "not measured", "")
    assert ratio["calls_10_cpu_s_per_1000"] > 0


def children_of(pid: int) -> list[Path]:
    """What /proc tells of each process that this one started."""
    return [Path("/proc", child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(process: Path) -> bool:
    try:
        return ") Z " not in (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
async def test_ended_run_leaves_neither_node_nor_store(sign: signal.Signals) -> None:
    command = (sys.executable, "-m", "loadtest", "mix", "evening", "--seconds", "60")
    async with running(*command, bound_s=BOUND_S) as program:
        await program.says(b"registering")
        started = children_of(program.process.pid)
        assert len(started) == 2  # a node and its store
        program.process.send_signal(sign)
        status, output, errors = await program.ended()
    assert (status, output) == (2, b"")
    assert errors.endswith(b"\nended before there was anything to report\n")
    assert b"Traceback" not in errors
    assert not [path for path in started if is_alive(path)]


async def interrupted(*arguments: str, at: bytes, signals: int = 1) -> Done:
    """Status, output and errors of a command that gets so many signals when it says `at`; what it started is gone then."""
    folder = tempfile.mkdtemp(prefix="t-")  # whose name is short enough for the store's socket
    command = (sys.executable, "-m", "loadtest", *arguments, "--json")
    async with running(*command, bound_s=BOUND_S, env={**os.environ, "TMPDIR": folder}) as program:
        await program.says(at)
        started = children_of(program.process.pid)
        for _ in range(signals):
            program.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
        done = await program.ended()
    assert not [path for path in started if is_alive(path)]
    os.rmdir(folder)  # noqa: PTH106  raises OSError where something is left
    return done


LASTING = SHORT.replace("seconds = 3", "seconds = 600").replace("mean_s = 0.3\nat_most_s = 1", "mean_s = 5")


@pytest.mark.parametrize("command", [("mix",), ("soak", "--every", "10000", "--mix")])
async def test_run_of_calls_that_is_interrupted_hangs_up_and_tells_what_it_has(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "lasting.toml").write_text(LASTING)
    picture = ("--plot", str(tmp_path / "lasting.svg"))
    status, output, errors = await interrupted(*command, str(tmp_path / "lasting.toml"), *picture, at=b"calling 4")
    assert b"\nending, to report what there is; once more to end at once\n" in errors
    (report,) = json.loads(output)
    told = ["interrupted: figures are of what was measured until then"]
    assert report["faults"] == [
        *told,
        *(["there was no trouble: a longer run, or a smaller --every"] if "soak" in command else []),
    ]
    assert (status, report["failed"], report["slots_left"]) == (1, 0, 0)
    assert 60 < report["calls"] < 400
    assert report["seconds"] < 60
    assert "</svg>" in (tmp_path / "lasting.svg").read_text()


async def test_goodput_that_is_interrupted_before_the_calls_of_a_rate_tells_those_before_it(tmp_path: Path) -> None:
    slowly = SMALLER.replace("rate = 30", "rate = 10").replace("register_per_s = 200", "register_per_s = 30")
    (tmp_path / "slowly.toml").write_text(slowly)
    rates = ("--capacity", "8", "--factor", "0.5", "--factor", "1", "--seconds", "2", "--plot", str(tmp_path / "good.svg"))
    status, output, _ = await interrupted(
        "goodput", "--mix", str(tmp_path / "slowly.toml"), *rates, at=b"8 a second, registering"
    )
    (report,) = json.loads(output)
    assert (status, report["title"]) == (1, "0.5 times")
    assert report["faults"] == ["interrupted: figures are of what was measured until then"]
    assert "</svg>" in (tmp_path / "good.svg").read_text()


async def test_goodput_that_is_interrupted_on_the_way_up_tells_how_far_it_came(tmp_path: Path) -> None:
    (tmp_path / "smaller.toml").write_text(SMALLER.replace("rate = 30", "rate = 10"))
    rates = ("--from", "5", "--seconds", "30", "--plot", str(tmp_path / "good.svg"))
    status, output, _ = await interrupted("goodput", "--mix", str(tmp_path / "smaller.toml"), *rates, at=b"calling 2")
    (report,) = json.loads(output)
    assert (status, report["title"]) == (1, "way up, 5/s")
    assert report["faults"] == ["interrupted: figures are of what was measured until then"]


async def test_run_that_is_interrupted_again_and_again_leaves_neither_node_nor_store(tmp_path: Path) -> None:
    """The second time it ends at once; what comes while it does changes nothing."""
    (tmp_path / "lasting.toml").write_text(LASTING)
    told = await interrupted("mix", str(tmp_path / "lasting.toml"), at=b"calling 2", signals=4)
    status, output, errors = told
    assert (status, output) == (2, b"")
    assert errors.endswith(b"\nended before there was anything to report\n")
    assert b"Traceback" not in errors


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


async def test_customer_who_floods_with_parts_of_calls_hinders_no_live_call_and_no_call_for_help() -> None:
    (report,) = await measure("flood", "--customer", "--rate", "4000", "--seconds", "4")
    assert report["sent"] > 3000, "a flood that is none shows nothing"
    assert report['sipproxy_shed_total{kind="part",reason="parts"}'] > 100
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
