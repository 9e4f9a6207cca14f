"""Days, time zones and clocks that are set: durations by the monotonic clock, stamps in UTC (design: invariant 4).

The calls are real ones of the engine on the virtual clock; what billing and the quality figures make of their records is shown
beside, because they alone speak of days and hours in Germany.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from cdr.export import Writer
from cdr.facts import Alive
from cdr.quality import key_of, post_dial_delay
from tests.sim.conftest import make_town
from tests.sim.restart import Restarts

if TYPE_CHECKING:
    from cdr.facts import Record
    from tests.sim.agent import AgentCall
    from tests.sim.conftest import Town
    from tests.sim.world import World

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S, HOUR_MS = 3600, 3_600_000
DAY_LONG_S = 26 * HOUR_S
WIRE_MS = 40  # two deliveries
RING_S, ANSWER_S = 0.1, 1.0  # of the virtual agents
BOOT = "boot-1"


def utc_ms(world: World) -> int:
    return world.instant.utc_ms


def set_clock(world: World, local: str, *, fold: int = 0) -> int:
    """Have it be this hour on the wall in Germany; `fold` 1 is the second time of an hour that there is twice. UTC ms."""
    at = dt.datetime.fromisoformat(local).replace(tzinfo=BERLIN, fold=fold)
    at_ms = round(at.timestamp() * 1000)
    world.epoch_ms += at_ms - utc_ms(world)
    return at_ms


def a_town(**options: object) -> tuple[Town, Restarts]:
    town = make_town(boot=BOOT, maximum_s=27.0 * HOUR_S, **options)
    town.register_all()
    return town, Restarts(town.world)


def begin(town: Town) -> AgentCall:
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: bool(call.answered_at))
    return call


def true_ms(call: AgentCall) -> float:
    return 1000 * (call.ended_at - call.answered_at)


def the_record(town: Town) -> Record:
    town.world.run(2.0)
    (record,) = town.world.records
    town.assert_reconciled()
    return record


def german(record: Record) -> dict[str, str]:
    writer = Writer("csv", "german-csv")
    rows = list(csv.reader(io.StringIO((writer.head() + writer.row(record)).decode("utf-8-sig"), newline=""), delimiter=";"))
    return dict(zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("begins", "fold", "seconds", "shown"),
    [
        ("2026-07-01T23:59:30", 0, 60, ("01.07.2026 23:59:30", "MESZ", "02.07.2026 00:00:31")),
        ("2026-12-31T23:59:30", 0, 60, ("31.12.2026 23:59:30", "MEZ", "01.01.2027 00:00:31")),
        ("2026-03-29T01:59:30", 0, 60, ("29.03.2026 01:59:30", "MEZ", "29.03.2026 03:00:31")),  # 02:00 to 03:00 is not there
        ("2026-10-25T02:59:30", 0, 60, ("25.10.2026 02:59:30", "MESZ", "25.10.2026 02:00:31")),  # and is there twice
        ("2026-10-25T02:59:30", 1, 60, ("25.10.2026 02:59:30", "MEZ", "25.10.2026 03:00:31")),
        ("2026-07-01T00:30:00", 0, 60, ("01.07.2026 00:30:00", "MESZ", "01.07.2026 00:31:01")),  # still June in UTC
        ("2026-07-01T12:00:00", 0, DAY_LONG_S, ("01.07.2026 12:00:00", "MESZ", "02.07.2026 14:00:01")),
        ("2026-03-28T12:00:00", 0, DAY_LONG_S, ("28.03.2026 12:00:00", "MEZ", "29.03.2026 15:00:01")),
        ("2026-10-24T12:00:00", 0, DAY_LONG_S, ("24.10.2026 12:00:00", "MESZ", "25.10.2026 13:00:01")),
    ],
)
def test_call_over_midnight_and_changes_of_the_hour_lasts_as_long_as_it_lasted(
    begins: str, fold: int, seconds: int, shown: tuple[str, str, str]
) -> None:
    town, _ = a_town()
    begun_ms = set_clock(town.world, begins, fold=fold)
    call = begin(town)
    town.world.run(seconds)
    town.alice.bye(call)
    record = the_record(town)
    assert (record.end_reason, record.duration_certain) == ("normal", True)
    assert record.billable_ms == pytest.approx(true_ms(call), abs=WIRE_MS)
    assert record.billable_ms == pytest.approx(1000 * seconds, abs=WIRE_MS)
    assert record.answer_at_ms is not None
    # The clock was not set, so that the stamps must agree with the durations: UTC knows no change of the hour.
    assert record.setup_at_ms == pytest.approx(begun_ms, abs=4 * WIRE_MS)
    assert record.end_at_ms - record.answer_at_ms == pytest.approx(record.billable_ms, abs=1)
    assert record.end_at_ms - record.setup_at_ms == pytest.approx(record.duration_ms, abs=1)
    row = german(record)
    assert (row["Beginn"], row["Zeitzone"], row["Ende"]) == shown
    assert row["Gesprächsdauer (s)"] == f"{record.billable_ms // 1000},{record.billable_ms % 1000:03}"
    assert key_of(record).day == begins[:10], "counted for the day on which it began in Germany"


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
@pytest.mark.parametrize("when", ["ringing", "talking"])
def test_clock_that_is_set_by_an_hour_during_a_call_changes_no_duration(step_ms: int, when: str) -> None:
    town, _ = a_town()
    set_clock(town.world, "2026-10-24T23:30:00")
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: 180 in call.provisional if when == "ringing" else bool(call.answered_at))
    town.world.epoch_ms += step_ms
    town.world.run_until(lambda: bool(call.answered_at))
    town.world.run(700.0)  # the parties have been asked, and have answered, since
    assert [fact for fact in town.world.facts if isinstance(fact, Alive)]
    town.alice.bye(call)
    ended_ms = utc_ms(town.world)
    record = the_record(town)
    assert (record.end_reason, record.duration_certain) == ("normal", True)
    assert record.billable_ms == pytest.approx(true_ms(call), abs=WIRE_MS)
    assert record.duration_ms - record.billable_ms == pytest.approx(1000 * ANSWER_S, abs=4 * WIRE_MS)
    assert record.end_at_ms == pytest.approx(ended_ms, abs=WIRE_MS), "by the clock as it is"
    assert record.end_at_ms - record.setup_at_ms == pytest.approx(record.duration_ms + step_ms, abs=1)
    assert post_dial_delay(record) == pytest.approx(1000 * RING_S, abs=4 * WIRE_MS)
    assert german(record)["Gesprächsdauer (s)"] == f"{record.billable_ms // 1000},{record.billable_ms % 1000:03}"
    assert key_of(record).day == "2026-10-24"


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_clock_that_is_set_before_it_rings_gives_no_post_dial_delay(step_ms: int) -> None:
    town, _ = a_town()
    town.trunk.behave = lambda call: town.trunk.ring_then_answer(call, 1.0, 2.0)
    call = town.alice.call(b"03023125001")
    town.world.run(0.5)
    town.world.epoch_ms += step_ms
    town.world.run(60.0)
    town.alice.bye(call)
    record = the_record(town)
    assert post_dial_delay(record) is None
    assert record.billable_ms == pytest.approx(true_ms(call), abs=WIRE_MS)
    assert record.duration_ms - record.billable_ms == pytest.approx(2000, abs=4 * WIRE_MS)


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_clock_that_is_set_while_the_node_is_away_changes_no_duration(step_ms: int) -> None:
    """The monotonic clock ran on: `boot` is the same."""
    town, node = a_town()
    call = begin(town)
    town.world.run(600.0)
    node.kill()
    town.world.epoch_ms += step_ms
    town.world.run(5.0)
    node.start()
    town.world.run(120.0)
    town.alice.bye(call)
    record = the_record(town)
    assert (record.end_reason, record.duration_certain) == ("normal", True)
    assert record.billable_ms == pytest.approx(true_ms(call), abs=WIRE_MS)
    assert record.duration_ms - record.billable_ms == pytest.approx(1000 * ANSWER_S, abs=4 * WIRE_MS)


@pytest.mark.parametrize("step_ms", [HOUR_MS, 0, -HOUR_MS])
def test_clock_that_is_set_over_a_reboot_leaves_a_duration_that_says_it_is_uncertain(step_ms: int) -> None:
    """Only the wall clock spans a reboot. It is wrong by the step at most, never by less than what is proven, and marked."""
    town, node = a_town()
    call = begin(town)
    town.world.run(700.0)
    proven_ms = max(fact.after_ms for fact in town.world.facts if isinstance(fact, Alive)) - 1000 * ANSWER_S
    node.kill()
    town.world.epoch_ms += step_ms
    town.world.run(5.0)
    node.start(boot="boot-2")
    town.world.run(120.0)
    town.alice.bye(call)
    record = the_record(town)
    assert (record.end_reason, record.duration_certain) == ("normal", False)
    assert proven_ms - WIRE_MS <= record.billable_ms <= true_ms(call) + max(0, step_ms) + WIRE_MS
    if not step_ms:
        assert record.billable_ms == pytest.approx(true_ms(call), abs=WIRE_MS)


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_call_cut_by_a_restart_ends_at_its_last_proof_of_life_though_the_clock_was_set(step_ms: int) -> None:
    """A proof is later than another by the monotonic clock, whatever the stamps say."""
    town, node = a_town(probe_s=60.0)
    call = begin(town)
    town.world.run(100.0)
    town.world.epoch_ms += step_ms
    town.world.run(100.0)
    last = [fact for fact in town.world.facts if isinstance(fact, Alive)][-1]
    node.kill()
    for agent in (town.alice, town.trunk):
        del town.world.agents[agent.address]
    town.world.run(1.0)
    node.start()
    town.world.run(300.0)
    record = the_record(town)
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert (record.duration_ms, record.end_at_ms) == (last.after_ms, last.at_ms)
    assert 100_000 < record.billable_ms <= 1000 * (town.world.now - call.answered_at)
