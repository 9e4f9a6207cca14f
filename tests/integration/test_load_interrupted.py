"""Measurements that are interrupted tell what they have, with status 1, and leave neither a process nor a folder."""

from __future__ import annotations

import json

import pytest

from tests.integration.test_load import interrupted

FAULTS = ("faults", "--only", "flushed", "--only", "slow", "--only", "full", "--rate", "2", "--hold", "0.2")
TIMES = ("--before", "0.5", "--during", "0.5", "--after", "0.5")


async def test_kills_that_are_interrupted_are_compared_as_far_as_they_came() -> None:
    status, output, errors = await interrupted("cdrkills", "--kills", "500", "--rate", "5", at=b"1 of 500 kills")
    assert b"\nending, to report what there is; once more to end at once\n" in errors
    (report,) = json.loads(output)
    assert report["faults"] == ["interrupted: figures are of what was measured until then"]
    assert (status, report["lost"], report["slots_left"]) == (1, 0, 0)
    assert 1 <= report["kills"] < 10
    assert report["attempts"] > 0


async def test_faults_that_are_interrupted_tell_those_that_are_over_and_name_the_others() -> None:
    status, output, errors = await interrupted(*FAULTS, *TIMES, at=b"faults, slow: before")
    (report,) = json.loads(output)
    assert (status, report["title"], report["faults"][-1]) == (1, "flushed", "interrupted: not measured: slow, full")
    assert b"Traceback" not in errors


async def test_parties_that_vanish_while_it_is_interrupted_are_not_told_but_those_before() -> None:
    ways = ("--by", "silence", "--by", "asking", "--calls", "4", "--reap", "2")
    status, output, errors = await interrupted("vanish", *ways, at=b"vanish, asking: ")
    (report,) = json.loads(output)
    assert (status, report["title"], report["calls"]) == (1, "by silence", 4)
    assert report["faults"] == ["interrupted: not measured: asking"]
    assert b"Traceback" not in errors


async def test_memory_that_is_interrupted_among_its_calls_tells_what_registrations_take() -> None:
    plan = ("--lines", "40", "--calls", "8", "--pause-s", "3", "--no-kamailio")
    status, output, errors = await interrupted("memory", *plan, at=b"node: calls, ")
    (report,) = json.loads(output)
    assert (status, report["faults"]) == (1, ["interrupted: figures are of what was measured until then"])
    assert report["registered_kib"] > report["idle_kib"] > 1000
    assert {report[key] for key in ("live_call_bytes", "ended_call_bytes", "peak_kib")} == {"not measured"}
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "at"),
    [((*FAULTS, *TIMES), b"faults, flushed: before"), (("memory", "--lines", "40", "--no-kamailio"), b"node: registrations")],
)
async def test_measurement_that_is_interrupted_before_the_first_figure_says_so(command: tuple[str, ...], at: bytes) -> None:
    status, output, errors = await interrupted(*command, at=at)
    assert (status, output) == (2, b"")
    assert errors.endswith(b"\nended before there was anything to report\n")
    assert b"Traceback" not in errors
