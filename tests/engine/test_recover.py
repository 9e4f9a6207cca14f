"""engine.recover: what a restart means for the end of a call."""

from __future__ import annotations

import pytest

from sipproxy.engine.actions import Now
from sipproxy.engine.recover import Resumed

AT = Now(1000.0, 1_000_000)


def seconds(after: float) -> Now:
    return Now(AT.mono + after, AT.utc_ms + round(1000 * after))


@pytest.mark.parametrize(
    ("seen", "heard", "other", "bye", "ended", "certain"),
    [
        (-0.05, -300.0, -300.0, 2.0, -35.0, False),  # perhaps a repetition that waited since we listen, of a BYE of 32 s before
        (-0.05, -10.0, -300.0, 2.0, -10.0, False),  # heard later than that: it lived then
        (-0.05, -300.0, -300.0, 31.9, -35.0, False),
        (-60.0, -300.0, -300.0, 2.0, -60.0, False),  # the other party may have hung up as soon as the node was away
        (-60.0, -20.0, -70.0, 2.0, -60.0, False),  # so it may where this one said something meanwhile,
        (-60.0, 1.0, -70.0, 2.0, -60.0, False),  # or since
        (-60.0, -20.0, 1.0, 2.0, -20.0, False),  # the other one is still there
        (-0.05, -300.0, -300.0, 32.1, 32.1, True),  # no BYE is repeated for longer
        (-0.05, 1.0, 1.5, 2.0, 2.0, True),  # both answered after the restart: it hung up after that
    ],
)
def test_bye_after_a_restart_ends_the_call_when_it_certainly_still_lived(
    seen: float, heard: float, other: float, bye: float, ended: float, *, certain: bool
) -> None:
    resumed = Resumed(AT, measured=True, node_seen=seconds(seen), bound_at=seconds(-3.0))
    resumed.leaving(seconds(heard), seconds(other), seconds(bye), repeated_s=32.0)
    at, is_certain = resumed.end(seconds(bye), min(seconds(heard), seconds(other)), by_us=False)
    assert at.mono == pytest.approx(AT.mono + ended)
    assert is_certain is certain


@pytest.mark.parametrize(("now", "sent"), [(2.0, -35.0), (31.9, -35.0), (32.1, 32.1)])
def test_request_soon_after_a_restart_may_be_the_repetition_of_an_earlier_one(now: float, sent: float) -> None:
    resumed = Resumed(AT, measured=True, node_seen=AT, bound_at=seconds(-3.0))
    assert resumed.sent(seconds(now), repeated_s=32.0).mono == pytest.approx(AT.mono + sent)


@pytest.mark.parametrize(("heard", "ended", "certain"), [(-5.0, -5.0, False), (5.0, 60.0, True)])
def test_end_of_ours_counts_only_when_somebody_was_heard_since(heard: float, ended: float, *, certain: bool) -> None:
    resumed = Resumed(AT, measured=True, node_seen=AT, bound_at=AT)
    assert resumed.end(seconds(60.0), seconds(heard), by_us=True) == (seconds(ended), certain)


def test_end_after_a_reboot_is_never_certain() -> None:
    resumed = Resumed(AT, measured=False, node_seen=AT, bound_at=AT)
    assert resumed.end(seconds(60.0), seconds(50.0), by_us=False) == (seconds(60.0), False)
