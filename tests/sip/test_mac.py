"""The prepared MAC is the one of the standard library (RFC 2104, RFC 4231)."""

from __future__ import annotations

import hmac

from hypothesis import given
from hypothesis import strategies as st

from sipproxy.sip.mac import Mac


def test_mac_of_rfc_4231_case_2() -> None:
    proof = Mac(b"Jefe").digest(b"what do ya want for nothing?")
    assert proof.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


@given(st.binary(max_size=140), st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_mac_of_any_key_and_texts_is_hmac_sha_256(key: bytes, texts: list[bytes]) -> None:
    mac = Mac(key)
    for text in texts:
        assert mac.digest(text) == hmac.digest(key, text, "sha256")
