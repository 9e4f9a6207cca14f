"""What leaves is what came, but for what RFC 3261 §16.6 and the policy's own headers say (design, invariant 7)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.actions import SendTo, TakeSlot
from sipproxy.sip.flow import Flow
from tests.engine.desk import Desk
from tests.sip.odd import BODIES, KINDS, name_of, odd_lines, split

TRUNK = Flow("UDP", 0, "198.51.100.1", 5060)
TARGET = b"sip:03023125001@sip.test"
CHANGED = {b"via", b"max-forwards", b"record-route", b"p-asserted-identity", b"proxy-authorization"}
BODY = bytes(range(256)) * 3
ODD_LINES = (
    b"x-ODD-case :  Value,with ;odd=\"things\"",
    b"Subject: first\r\n  folded\r\n\tthree lines",
    b"NewFangled: \xc3\xa9\xff not UTF-8",
    b"k: timer, 100rel",
    b"l: %d" % len(BODY),
    b"Empty:",
    b"CONTACT: \"A, B\" <sip:alice@203.0.113.1;x=%41>;q=1 , <sip:alice@203.0.113.2>",
)  # fmt: skip


def forwarded(desk: Desk, data: bytes) -> bytes:
    desk.receive(data)
    take = next(a for a in desk.actions if isinstance(a, TakeSlot))
    actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    return next(a.data for a in actions if isinstance(a, SendTo) and a.data.startswith(b"INVITE"))


def odd_invite(desk: Desk) -> bytes:
    value = desk.credentials(b"INVITE", TARGET)
    data = desk.request(b"INVITE", TARGET, headers=(value,), body=BODY)
    head, body = data.split(b"\r\n\r\n", 1)
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    return b"\r\n".join([*lines[:4], *ODD_LINES, *lines[4:]]) + b"\r\n\r\n" + body


def test_odd_but_valid_invite_keeps_every_other_line_and_the_body() -> None:
    desk = Desk()
    sent = odd_invite(desk)
    arrived = forwarded(desk, sent)
    start, lines, body = split(arrived)
    _, before, body_before = split(sent)
    assert start == b"INVITE sip:+493023125001@198.51.100.1:5060;user=phone SIP/2.0"
    assert body == body_before == BODY
    kept = [line for line in lines if name_of(line) not in CHANGED]
    assert kept == [*(line for line in before if name_of(line) not in CHANGED), b"Session-Expires: 1800"]  # RFC 4028 §8.1
    assert [line for line in lines if name_of(line) == b"max-forwards"] == [b"Max-Forwards: 69"]
    vias = [line for line in lines if name_of(line) == b"via"]
    assert len(vias) == 2
    assert vias[0].startswith(b"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK")
    assert b"received=203.0.113.1" in vias[1]


@pytest.mark.parametrize("status", [180, 200, 404])
def test_response_keeps_every_line_but_our_via(status: int) -> None:
    desk = Desk()
    invite = forwarded(desk, odd_invite(desk))
    _, lines, _ = split(invite)
    copied = [line for line in lines if name_of(line) in (b"via", b"from", b"to", b"call-id", b"cseq", b"record-route")]
    copied = [line + b";tag=77" if name_of(line) == b"to" else line for line in copied]
    odd = [line for line in ODD_LINES if not line.startswith(b"l:")]
    answer = b"\r\n".join([b"SIP/2.0 %d Whatever, really" % status, *odd, *copied, b"l: %d" % len(BODY)]) + b"\r\n\r\n" + BODY
    actions = desk.engine.receive(answer, TRUNK, desk.now)
    upstream = [a.data for a in actions if isinstance(a, SendTo) and a.data.startswith(b"SIP/2.0 %d" % status)]
    start, after, body = split(upstream[0])
    assert start == b"SIP/2.0 %d Whatever, really" % status
    assert body == BODY
    copied.remove(next(line for line in copied if name_of(line) == b"via"))
    expected = [*odd, *copied, b"l: %d" % len(BODY)]
    if status == 200:
        expected += [b"Session-Expires: 1800;refresher=uac", b"Require: timer"]  # RFC 4028 §8.2: the caller knows timers
    assert after == expected


@settings(max_examples=250)
@given(st.integers(0, 2**32 - 1))
def test_generated_invites_and_their_responses_differ_only_where_the_rfc_says_so(seed: int) -> None:
    """From the caller to the carrier and back: names, case, white space, folds, order, 8-bit and bodies stay."""
    random, desk = Random(seed), Desk()
    lines, body, length = (
        odd_lines(random),
        random.choice(BODIES),
        random.choice((b"Content-Length: %d", b"l : %d", b"CONTENT-LENGTH:%d")),
    )
    kind = random.choice((b"Content-Type: ", b"c:", b"cOnTeNt-TyPe : ")) + random.choice(KINDS)
    plain = desk.request(b"INVITE", TARGET, headers=(desk.credentials(b"INVITE", TARGET),))
    rows = [row for row in plain.split(b"\r\n\r\n")[0].split(b"\r\n") if not row.startswith(b"Content-Length")]
    at = random.randrange(2, len(rows) + 1)
    sent = b"\r\n".join([*rows[:at], *lines, *rows[at:], kind, length % len(body)]) + b"\r\n\r\n" + body
    _, before, _ = split(sent)
    arrived = forwarded(desk, sent)
    _, after, body_after = split(arrived)
    assert body_after == body
    added = [b"Session-Expires: 1800"]  # RFC 4028 §8.1
    assert [line for line in after if name_of(line) not in CHANGED] == [
        line for line in before if name_of(line) not in CHANGED
    ] + added
    copied = [line for line in after if name_of(line) in (b"via", b"from", b"to", b"call-id", b"cseq", b"record-route")]
    copied = [line + b";tag=77" if name_of(line) == b"to" else line for line in copied]
    back, status = odd_lines(random), random.choice((180, 183, 404, 486))
    rows = [*back, *copied, kind, length % len(body)]
    actions = desk.engine.receive(
        b"SIP/2.0 %d \xc3\x9c b\r\n" % status + b"\r\n".join(rows) + b"\r\n\r\n" + body, TRUNK, desk.now
    )
    (upstream,) = [a.data for a in actions if isinstance(a, SendTo) and a.data.startswith(b"SIP/2.0 %d" % status)]
    start, returned, body_returned = split(upstream)
    rows.remove(next(line for line in rows if name_of(line) == b"via"))
    assert (start, returned, body_returned) == (
        b"SIP/2.0 %d \xc3\x9c b" % status,
        split(b"x\r\n" + b"\r\n".join(rows) + b"\r\n\r\n")[1],
        body,
    )
