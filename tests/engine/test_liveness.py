"""The deadlines of one dialog's watch: when a side is asked, when it is gone, when a session is over."""

from __future__ import annotations

from math import inf

import pytest

from sipproxy.engine.actions import Now
from sipproxy.engine.liveness import Side, Watch

CALLER, CALLEE = Side.CALLER, Side.CALLEE


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, round(seconds * 1000))


def started(probe_s: float = 100.0, longest_s: float = 300.0) -> Watch:
    return Watch.start(at(0), probe_s=probe_s, longest_s=longest_s)


def test_proof_is_when_the_side_that_was_silent_longer_was_heard() -> None:
    watch = started()
    watch.heard(CALLER, at(50))
    assert watch.proof == at(0)
    watch.heard(CALLEE, at(40))
    assert watch.proof == at(40)


def test_side_is_asked_once_when_it_was_silent_for_so_long() -> None:
    watch = started()
    watch.heard(CALLEE, at(30))
    assert watch.next_at == 1100.0
    assert watch.due(1099.9) == []
    assert watch.due(1100.0) == [CALLER]
    assert watch.due(1101.0) == [], "it was asked, and has not answered yet"
    assert watch.due(1130.0) == [CALLEE]
    assert watch.next_at == inf
    watch.heard(CALLER, at(131))
    assert watch.next_at == 1231.0


@pytest.mark.parametrize("probe_s", [0.0])
def test_side_is_never_asked_when_that_is_off(probe_s: float) -> None:
    watch = started(probe_s)
    assert watch.next_at == inf
    assert watch.due(1e9) == []
    assert watch.failed(CALLER, 1000.0, again_s=0)
    assert watch.next_at == inf


def test_refused_or_unanswered_probe_means_gone_and_the_side_is_asked_again_as_long_as_the_call_lives() -> None:
    watch = started()
    watch.due(1100.0)
    assert watch.failed(CALLER, 1132.0, again_s=0)
    assert watch.gone == (CALLER,)
    assert watch.next_at == 1232.0
    watch.heard(CALLER, at(200))
    assert watch.gone == ()


def test_transport_failure_is_gone_at_the_second_in_a_row() -> None:
    watch = started()
    watch.due(1100.0)
    assert not watch.failed(CALLEE, 1100.0, again_s=32.0)
    assert watch.due(1132.0) == [CALLEE]
    watch.heard(CALLEE, at(133))
    assert not watch.failed(CALLEE, 1233.0, again_s=32.0)
    assert watch.failed(CALLEE, 1265.0, again_s=32.0)


@pytest.mark.parametrize(("interval_s", "expires_at"), [(300, 1310.0), (90, 1100.0), (301, inf), (None, inf)])
def test_agreed_interval_up_to_ours_replaces_probes(interval_s: int | None, expires_at: float) -> None:
    watch = started()
    watch.refreshed(interval_s, at(10))
    assert watch.expires_at == expires_at
    probed = watch.due(1100.0)
    assert probed == ([] if expires_at < inf else [CALLER, CALLEE])
    assert watch.next_at == expires_at


def test_session_that_is_refreshed_without_an_interval_is_probed_again() -> None:
    """RFC 4028 §8.2: without Session-Expires in the 2xx there is no session expiration any more."""
    watch = started()
    watch.refreshed(300, at(0))
    watch.refreshed(None, at(50))
    assert watch.next_at == 1100.0
