"""The proxy's rules for session timers: RFC 4028 §8.1 (requests) and §8.2 (their 2xx)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.engine.session import LEAST_S, Agreed, Asked, Terms, agreed, ask, is_too_short, refusal, tell
from sipproxy.sip.build import Editor, write_request, write_response
from sipproxy.sip.message import Request, Response, parse_message

TERMS = Terms(interval_s=1800, least_s=120)
BASE = [
    (b"Via", b"SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1"),
    (b"From", b"<sip:a@sip.test>;tag=1"),
    (b"To", b"<sip:b@sip.test>"),
    (b"Call-ID", b"c1"),
]


def request(*headers: tuple[bytes, bytes], method: bytes = b"INVITE") -> Request:
    message = parse_message(write_request(method, b"sip:b@sip.test", [*BASE, (b"CSeq", b"1 " + method), *headers]))
    assert isinstance(message, Request)
    return message


def refresh(expires: bytes = b"", min_se: bytes = b"", *, timer: bool = True, method: bytes = b"INVITE") -> Request:
    headers = [(b"Supported", b"100rel, Timer" if timer else b"100rel")]
    headers += [(b"Session-Expires", expires)] if expires else []
    headers += [(b"Min-SE", min_se)] if min_se else []
    return request(*headers, method=method)


def asked(message: Request, terms: Terms = TERMS) -> tuple[Asked | None, bytes | None, bytes | None]:
    """What is remembered, and the Session-Expires and Min-SE of the copy that leaves."""
    editor = Editor(message)
    found = ask(message, editor, terms)
    copy = parse_message(editor.to_bytes())
    others = [line for key, line in zip(copy.keys, copy.lines_raw, strict=True) if key not in (b"session-expires", b"min-se")]
    before = [
        line for key, line in zip(message.keys, message.lines_raw, strict=True) if key not in (b"session-expires", b"min-se")
    ]
    assert others == before, "nothing else is touched"
    return found, copy.first(b"session-expires"), copy.first(b"min-se")


@pytest.mark.parametrize("timer", [True, False])
@pytest.mark.parametrize(
    ("expires", "min_se", "left"),
    [
        (b"", b"", b"1800"),  # §8.1: MAY insert
        (b"", b"90", b"1800"),
        (b"", b"3600", b"3600"),  # not below the request's Min-SE
        (b"1800", b"", b"1800"),
        (b"600;refresher=uas;x=1", b"", b"600;refresher=uas;x=1"),  # MUST NOT increase
        (b"7200", b"", b"1800"),  # MAY reduce
        (b"7200;refresher=uac", b"100", b"1800;refresher=uac"),  # the refresher parameter stays as it is
        (b"7200", b"3600", b"3600"),  # not below Min-SE
        (b"7200 ; refresher=uac", b"7200", b"7200 ; refresher=uac"),
        (b"300", b"600", b"600"),  # MUST increase to Min-SE
    ],
)
def test_ask_interval_leaves_within_what_both_want(expires: bytes, min_se: bytes, left: bytes, timer: bool) -> None:
    found, session_expires, least = asked(refresh(expires, min_se, timer=timer))
    assert session_expires == left
    assert found == Asked(int(left.split(b";")[0]), timer)
    assert least == (min_se or None)


@pytest.mark.parametrize(("min_se", "left"), [(b"", b"120"), (b"90;x=1", b"120;x=1"), (b"300", b"300")])
def test_ask_too_short_from_a_sender_without_timers_is_made_longer(min_se: bytes, left: bytes) -> None:
    """§8.1: who cannot make use of a 422 gets its Min-SE and its interval raised on the way."""
    message = refresh(b"95", min_se, timer=False)
    assert not is_too_short(message, TERMS)
    found, session_expires, least = asked(message)
    assert (session_expires, least) == (left.split(b";")[0], left)
    assert found == Asked(int(left.split(b";")[0]), False)


@pytest.mark.parametrize(
    ("expires", "timer", "method", "refused"),
    [
        (b"119", True, b"INVITE", True),
        (b"119", True, b"UPDATE", True),
        (b"120", True, b"INVITE", False),
        (b"119", False, b"INVITE", False),
        (b"", True, b"INVITE", False),
        (b"119", True, b"INFO", False),
        (b"soon", True, b"INVITE", False),
    ],
)
def test_too_short_interval_is_refused_to_those_who_know_timers(
    expires: bytes, timer: bool, method: bytes, refused: bool
) -> None:
    assert is_too_short(refresh(expires, timer=timer, method=method), TERMS) is refused
    assert refusal(TERMS) == (b"Min-SE", b"120")


@pytest.mark.parametrize(
    ("expires", "min_se"), [(b"soon", b""), (b"-1", b""), (b"12345678901", b""), (b"1800", b"never"), (b"", b"x")]
)
def test_ask_unreadable_headers_leave_as_they_came(expires: bytes, min_se: bytes) -> None:
    assert asked(refresh(expires, min_se)) == (None, expires or None, min_se or None)


def test_ask_without_an_interval_of_ours_honours_the_parties_own() -> None:
    terms = Terms(0, 90)
    assert asked(refresh(), terms) == (None, None, None)
    assert asked(refresh(b"7200"), terms) == (Asked(7200, True), b"7200", None)


def test_ask_other_methods_are_left_alone() -> None:
    assert asked(refresh(method=b"BYE")) == (None, None, None)


def response(*headers: tuple[bytes, bytes]) -> Response:
    message = parse_message(write_response(request(), 200, to_tag=b"2", headers=headers))
    assert isinstance(message, Response)
    return message


def told(message: Response, remembered: Asked | None) -> tuple[Agreed | None, bytes | None, list[bytes]]:
    editor = Editor(message)
    found = agreed(message, remembered)
    tell(message, found, editor)
    copy = parse_message(editor.to_bytes())
    return found, copy.first(b"session-expires"), copy.values(b"require")


KNOWS, KNOWS_NOT = Asked(1800, True), Asked(1800, False)


@pytest.mark.parametrize(
    ("headers", "remembered", "expected"),
    [
        # The UAS says what holds: MUST NOT be modified.
        ([(b"x", b"900;refresher=UAS")], KNOWS, (Agreed(900, "uas"), b"900;refresher=UAS", [])),
        ([(b"Session-Expires", b"900")], None, (Agreed(900, ""), b"900", [])),
        ([(b"Session-Expires", b"junk")], KNOWS, (None, b"junk", [])),
        # The UAS knows no timers, the caller does: we are the first proxy that knows, and the caller refreshes.
        ([], KNOWS, (Agreed(1800, "uac"), b"1800;refresher=uac", [b"timer"])),
        ([(b"Require", b"100rel")], KNOWS, (Agreed(1800, "uac"), b"1800;refresher=uac", [b"100rel", b"timer"])),
        ([(b"Require", b"TIMER")], KNOWS, (Agreed(1800, "uac"), b"1800;refresher=uac", [b"TIMER"])),
        # Neither knows: no session expiration.
        ([], KNOWS_NOT, (None, None, [])),
        ([], None, (None, None, [])),
    ],
)
def test_2xx_tells_the_caller_what_holds(
    headers: list[tuple[bytes, bytes]], remembered: Asked | None, expected: tuple[Agreed | None, bytes | None, list[bytes]]
) -> None:
    assert told(response(*headers), remembered) == expected


@given(st.integers(0, 100_000) | st.none(), st.integers(0, 100_000) | st.none(), st.integers(90, 86_400), st.integers(0, 3600))
def test_ask_never_breaks_the_senders_bounds(expires: int | None, min_se: int | None, interval: int, above: int) -> None:
    """§8.1 for any numbers: never below Min-SE, never raised but to Min-SE, Min-SE untouched where the sender knows timers."""
    terms = Terms(interval + above, interval)
    message = refresh(b"" if expires is None else b"%d" % expires, b"" if min_se is None else b"%d" % min_se)
    found, left, least = asked(message, terms)
    assert least == (None if min_se is None else b"%d" % min_se)
    assert found is not None
    assert left == b"%d" % found.interval_s
    assert found.interval_s >= (min_se or 0)
    if expires is not None:
        assert found.interval_s <= max(expires, min_se or 0)
    else:
        assert found.interval_s >= LEAST_S
