"""The response context's choices (RFC 3261 §16.7 steps 4 to 7, §16.8, §16.10)."""

from __future__ import annotations

import pytest

from sipproxy.engine.response_context import Progress, ResponseContext, best_of
from sipproxy.sip.message import Response, parse_message


def response(status: int) -> Response:
    head = b"SIP/2.0 %d X\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;tag=2\r\n" % status
    message = parse_message(head + b"Call-ID: x\r\nCSeq: 1 INVITE\r\n\r\n")
    assert isinstance(message, Response)
    return message


def context(*keys: str, groups: int = 0, retry_on: frozenset[int] | None = None) -> ResponseContext[str]:
    found: ResponseContext[str] = ResponseContext([[f"next{n}"] for n in range(groups)], retry_on)
    for key in keys:
        found.add(key, key)
    return found


@pytest.mark.parametrize(
    ("statuses", "best"),
    [
        ((486, 404), 486),  # the first of the lowest class
        ((503, 486), 486),
        ((503, 500), 500),  # a 503 speaks of its hop alone
        ((404, 407), 407),  # what lets the caller do better
        ((302, 486, 503), 302),
        ((486, 603), 603),  # a 6xx outranks all
        ((603, 302), 603),
    ],
)
def test_best_response_is_that_of_section_16_7_step_6(statuses: tuple[int, ...], best: int) -> None:
    fork = context(*map(str, range(len(statuses))))
    for key, status in enumerate(statuses):
        fork.final(str(key), status, response(status))
    found = fork.best()
    assert found is not None
    assert found.status == best


def test_best_prefers_what_a_peer_said_to_what_silence_became() -> None:
    fork = context("a", "b")
    fork.final("a", 408, None)
    fork.final("b", 486, response(486))
    found = fork.best()
    assert found is not None
    assert found.status == 486


def test_best_of_nothing_is_none() -> None:
    assert best_of([]) is None


def test_final_of_one_branch_waits_for_the_others_and_the_last_finishes() -> None:
    fork = context("a", "b")
    assert fork.final("a", 486, response(486)) is Progress.WAIT
    assert fork.final("b", 404, response(404)) is Progress.FINISH
    assert fork.final("b", 500, response(500)) is Progress.WAIT, "a second final of a branch is nothing new"


def test_group_after_group_until_a_status_that_is_no_failure_of_the_route() -> None:
    retry = frozenset({408, 503})
    fork = context("a", groups=2, retry_on=retry)
    assert fork.final("a", 503, None) is Progress.NEXT
    fork.add("b", fork.next_group()[0])
    assert fork.final("b", 486, response(486)) is Progress.FINISH
    assert context("a", groups=1).final("a", 486, response(486)) is Progress.NEXT, "None retries on every failure"


def test_6xx_or_a_stop_ends_the_search() -> None:
    fork = context("a", groups=1)
    assert fork.final("a", 603, response(603)) is Progress.FINISH
    fork = context("a", groups=1)
    fork.stopped = True
    assert fork.final("a", 503, None) is Progress.FINISH


def test_cancel_is_owed_once_and_only_after_a_provisional() -> None:
    """§9.1."""
    fork = context("a", "b", "c")
    fork.branches["a"].provisional = True
    fork.final("c", 486, response(486))
    assert [b.key for b in fork.to_cancel()] == ["a"]
    assert fork.to_cancel() == []
    fork.branches["b"].provisional = True
    assert [b.key for b in fork.to_cancel()] == ["b"]


def test_overdue_branch_lets_the_next_group_start_but_is_waited_for_at_the_end() -> None:
    fork = context("a", groups=1)
    fork.branches["a"].overdue = True
    assert fork.progress() is Progress.NEXT
    fork.add("b", fork.next_group()[0])
    assert fork.final("b", 503, None) is Progress.WAIT
    assert fork.final("a", 408, None) is Progress.FINISH


def test_first_2xx_wins_and_nothing_else_is_done_then() -> None:
    fork = context("a", "b", groups=1)
    assert fork.answered("a", 200)
    assert not fork.answered("b", 200)
    assert fork.progress() is Progress.WAIT
