"""The kinds of media in a session description (RFC 8866 §5.14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.sip.sdp import KINDS, media_kinds

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=m=video 1\r\nt=0 0\r\n"


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (SDP + b"m=audio 4000 RTP/AVP 8\r\n", ["audio"]),
        (SDP + b"m=audio 4000 RTP/AVP 8\r\nm=video 0 RTP/AVP 31\r\nm=image 4002 udptl t38\r\n", ["audio", "image"]),
        (SDP + b"m=text 1 RTP/AVP 98\nm=audio 2 RTP/AVP 0\nm=text 3 RTP/AVP 98\n", ["text", "audio"]),
        (SDP + b"m=application 5 x\r\nm=audio\r\nm= audio 4\r\nm=audio 00\r\na=m=audio 4\r\n", []),
        (b"m=audio 5 RTP/AVP 0", ["audio"]),
        (b"", []),
    ],
)
def test_media_kinds_of_streams_in_use_are_listed(body: bytes, kinds: list[str]) -> None:
    assert media_kinds(body, b"application/sdp") == kinds


def test_media_kinds_other_content_type_has_none() -> None:
    body = SDP + b"m=audio 4000 RTP/AVP 8\r\n"
    assert media_kinds(body, b"text/plain") == media_kinds(body, b"") == media_kinds(body, b"application/sdpx") == []
    assert media_kinds(body, b" Application/SDP ; charset=x") == ["audio"]


def test_media_kinds_inside_a_multipart_body_are_found() -> None:
    body = b"--b\r\nContent-Type: application/sdp\r\n\r\n" + SDP + b"m=audio 4000 RTP/AVP 8\r\n--b--\r\n"
    assert media_kinds(body, b"multipart/mixed;boundary=b") == ["audio"]


@given(st.binary(), st.sampled_from([b"application/sdp", b"multipart/x", b"\xff"]))
def test_media_kinds_any_body_never_raises(body: bytes, content_type: bytes) -> None:
    assert set(media_kinds(body + b"\r\nm=", content_type)) <= set(KINDS)
