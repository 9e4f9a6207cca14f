"""Guard against automatic dialling, against a model that keeps every start."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.fraud import SetupGuard

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.booleans()), max_size=120)


@settings(max_examples=300)
@given(EVENTS, st.integers(1, 30))
def test_guard_counts_like_a_model_that_keeps_everything(events: list[tuple[str, int, bool]], window_s: int) -> None:
    guard, model, now = SetupGuard(), [], 0.0
    for line, pause, starts in events:
        now += pause / 4
        assert guard.started(line, window_s, now) == sum(who == line and now - at < window_s for who, at in model)
        if starts:
            assert guard.start(line, now) == 0
            model.append((line, now))
    assert len(guard) <= len(model)


def test_guard_full_forgets_the_line_that_was_idle_longest_and_counts_it() -> None:
    guard = SetupGuard(limit=5)
    events = (("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0), ("c", 5.0), ("c", 6.0))
    assert [guard.start(line, at) for line, at in events] == [0, 0, 0, 0, 0, 1]
    assert [guard.started(line, 60, 6.0) for line in "abc"] == [2, 0, 3]
    assert len(guard) == 5


def test_guard_of_one_line_alone_keeps_its_latest_starts() -> None:
    guard = SetupGuard(limit=3)
    for at in range(10):
        guard.start("a", float(at))
        assert len(guard) <= 3
    assert guard.started("a", 60, 9.0) == 3
    assert guard.started("a", 1.5, 9.0) == 2


def test_guard_drops_lines_that_have_been_idle_for_an_hour() -> None:
    guard = SetupGuard()
    for number in range(100):
        guard.start(f"line-{number}", 0.0)
    for number in range(50):
        assert guard.start("busy", 3600.0 + number) == 0
    assert len(guard) == 50
