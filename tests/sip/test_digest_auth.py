"""Digest (RFC 7616, RFC 8760): the published examples, what is refused, nonces and their counts."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.sip.digest import (
    ALGORITHMS,
    NONCE_WINDOW,
    Challenge,
    NonceSource,
    NonceState,
    ha1,
    parse_challenge,
    parse_credentials,
    verify,
    write_challenge,
    write_credentials,
)
from sipproxy.sip.errors import ParseError

MUFASA = (
    b'Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", algorithm=%b, '
    b'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, '
    b'cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="%b", '
    b'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)
# RFC 7616 §3.9.1; §3.9.2 with the cnonce of the RFC and the response of erratum 4897: the printed one is of another hash.
MD5 = MUFASA % (b"MD5", b"8ca523f5e9506fed4657c9700eebdbec")
SHA_256 = MUFASA % (b"SHA-256", b"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1")
SHA_512_256 = (
    b'Digest username="J\xc3\xa4s\xc3\xb8n Doe", realm="api@example.org", uri="/doe.json", algorithm=SHA-512-256, '
    b'nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK", nc=00000001, '
    b'cnonce="NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v", qop=auth, '
    b'response="3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5"'
)
# RFC 2069 §2.4 with the response of its erratum 749.
RFC_2069 = (
    b'Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", '
    b'response="1949323746fe6a43ef61f9606e7febea", opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)
EXAMPLES = [
    (MD5, "MD5", "Mufasa", "http-auth@example.org", "Circle of Life"),
    (SHA_256, "SHA-256", "Mufasa", "http-auth@example.org", "Circle of Life"),
    (SHA_512_256, "SHA-512-256", "Jäsøn Doe", "api@example.org", "Secret, or not?"),
    (RFC_2069, "MD5", "Mufasa", "testrealm@host.com", "CircleOfLife"),
]


@pytest.mark.parametrize(("value", "algorithm", "user", "realm", "password"), EXAMPLES)
def test_verify_published_example_is_right_and_anything_else_wrong(
    value: bytes, algorithm: str, user: str, realm: str, password: str
) -> None:
    credentials = parse_credentials(value)
    assert (credentials.username, credentials.realm, credentials.algorithm) == (user, realm, algorithm)
    secret = ha1(algorithm, user, realm, password)
    assert verify(credentials, b"GET", secret)
    assert verify(credentials, b"GET", secret.upper())
    assert not verify(credentials, b"PUT", secret)
    assert not verify(credentials, b"GET", ha1(algorithm, user, realm, password + "x"))
    for change in ({"nonce": b"x"}, {"uri": b"/"}, {"response": "00"}):
        assert not verify(dataclasses.replace(credentials, **change), b"GET", secret)
    if credentials.qop:
        for change in ({"nc_text": b"00000002"}, {"cnonce": b"x"}, {"qop": "auth-int"}, {"qop": None}):
            assert not verify(dataclasses.replace(credentials, **change), b"GET", secret)


def test_verify_legacy_without_qop_is_for_md5_only() -> None:
    for algorithm in ALGORITHMS:
        challenge = Challenge("r", b"n", algorithm, (), b"", stale=False)
        value = write_credentials(challenge, method=b"REGISTER", uri=b"sip:h", user="u", password="p", cnonce=b"c", nc=1)
        credentials = parse_credentials(value)
        assert (credentials.qop, credentials.nc) == (None, None)
        assert verify(credentials, b"REGISTER", ha1(algorithm, "u", "r", "p")) is (algorithm == "MD5")


@pytest.mark.parametrize("algorithm", [b"MD5-sess", b"SHA-256-sess", b"AKAv1-MD5", b"SHA-1", b"\xff"])
def test_verify_algorithm_that_was_not_offered_is_wrong(algorithm: bytes) -> None:
    credentials = parse_credentials(MD5.replace(b"algorithm=MD5", b"algorithm=" + algorithm))
    assert not verify(credentials, b"GET", ha1("MD5", "Mufasa", "http-auth@example.org", "Circle of Life"))


@given(
    st.sampled_from(ALGORITHMS),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers(1, 2**32 - 1),
    st.booleans(),
)
def test_challenge_and_credentials_any_names_round_trip(
    algorithm: str, user: str, realm: str, password: str, nc: int, stale: bool
) -> None:
    challenge = parse_challenge(write_challenge(realm, b"abc=", algorithm, stale=stale))
    assert challenge == Challenge(realm, b"abc=", algorithm, ("auth",), b"", stale)
    value = write_credentials(challenge, method=b"INVITE", uri=b"sip:h", user=user, password=password, cnonce=b'c"\\', nc=nc)
    credentials = parse_credentials(value)
    assert (credentials.username, credentials.realm, credentials.nc, credentials.cnonce) == (user, realm, nc, b'c"\\')
    assert verify(credentials, b"INVITE", ha1(algorithm, user, realm, password))


def test_write_challenge_is_as_rfc_7616_writes_it() -> None:
    assert write_challenge('a"b', b"n", "MD5", stale=False) == b'Digest realm="a\\"b", nonce="n", algorithm=MD5, qop="auth"'
    assert write_challenge("a", b"n", "SHA-256", stale=True).endswith(b', algorithm=SHA-256, qop="auth", stale=true')
    with pytest.raises(ValueError, match="algorithm"):
        write_challenge("a", b"n", "MD5-sess", stale=False)


def test_parse_challenge_of_others_is_read() -> None:
    challenge = parse_challenge(
        b'digest  REALM="r" , domain="sip:h",nonce="n\\"", opaque="", stale=TRUE, algorithm=md5, qop="auth, auth-int", x=y'
    )
    assert challenge == Challenge("r", b'n"', "MD5", ("auth", "auth-int"), b"", stale=True)
    assert parse_challenge(b'Digest realm="r",nonce="n"') == Challenge("r", b"n", "MD5", (), b"", stale=False)
    answer = write_credentials(challenge, method=b"A", uri=b"sip:h", user="u", password="p", cnonce=b"c", nc=255)
    assert b"nc=000000ff" in answer


@pytest.mark.parametrize("change", [{"algorithm": "MD5-sess"}, {"qop": ("auth-int",)}])
def test_write_credentials_for_a_challenge_we_cannot_answer_is_refused(change: dict[str, object]) -> None:
    challenge = dataclasses.replace(Challenge("r", b"n", "MD5", ("auth",), b"", stale=False), **change)
    with pytest.raises(ValueError, match="cannot answer"):
        write_credentials(challenge, method=b"A", uri=b"sip:h", user="u", password="p", cnonce=b"c", nc=1)


def test_write_credentials_opaque_is_returned() -> None:
    challenge = Challenge("r", b"n", "MD5", ("auth",), b"o", stale=False)
    value = write_credentials(challenge, method=b"A", uri=b"sip:h", user="u", password="p", cnonce=b"c", nc=1)
    assert parse_credentials(value).opaque == b"o"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Digest", b"Basic"),
        (b"Digest ", b"Digest"),
        (b'username="Mufasa", ', b""),
        (b'uri="/dir/index.html", ', b""),
        (b'realm="http-auth@example.org", ', b""),
        (b"response=", b"reply="),
        (b"nonce=", b"once="),
        (b'username="Mufasa"', b'username="Mufasa", username="x"'),
        (b'username="Mufasa"', b'username="Mufasa", USERNAME="Mufasa"'),
        (b'username="Mufasa"', b'username="Mufasa'),
        (b'username="Mufasa"', b'username="\xff"'),
        (b'username="Mufasa"', b'username="a\\\x00b"'),
        (b'username="Mufasa"', b"username="),
        (b'username="Mufasa"', b"username"),
        (b"8ca523", b"8ca52g"),
        (b'"8ca523f5e9506fed4657c9700eebdbec"', b'""'),
        (b"nc=00000001", b"nc=1"),
        (b"nc=00000001", b"nc=000000001"),
        (b"nc=00000001", b"nc=0000000g"),
        (b"nc=00000001, ", b""),
        (b"cnonce=", b"dnonce="),
        (b"qop=auth", b"qop=auth,,"),
        (b'iTo0v"', b'iTo0v"x'),
    ],
)
def test_parse_credentials_malformed_is_refused(old: bytes, new: bytes) -> None:
    value = MD5.replace(old, new, 1)
    assert value != MD5
    with pytest.raises(ParseError) as error:
        parse_credentials(value)
    assert "Mufasa" not in str(error.value)
    assert "8ca5" not in str(error.value)


def test_parse_credentials_trailing_comma_too_many_or_too_long_is_refused() -> None:
    for value in (MD5 + b",", MD5 + b", ", MD5 + b"".join(b",p%d=1" % n for n in range(32)), MD5 + b",x=" + b"y" * 8192):
        with pytest.raises(ParseError):
            parse_credentials(value)


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: b"Digest " + data)))
def test_parse_credentials_any_bytes_raise_nothing_but_parse_error(data: bytes) -> None:
    for parse in (parse_credentials, parse_challenge):
        try:
            parse(data)
        except ParseError:
            continue


@pytest.mark.parametrize("filling", [b",", b'"', b'a="', b"a=b,", b" ", b"\\", b'"\\'])
def test_parse_credentials_hostile_repetition_takes_linear_time(filling: bytes) -> None:
    start = time.thread_time()
    for before in (b"Digest ", b'Digest a="', b"Digest a="):
        with pytest.raises(ParseError):
            parse_credentials(before + filling * 60000)
    assert time.thread_time() - start < 1, "what grows by the square takes several seconds"


KEY = b"k" * 32
OWNER = b"203.0.113.1"
NOW = 1_800_000_000


def source(*, max_tracked: int = 100) -> NonceSource:
    return NonceSource(KEY, lifetime_s=300, max_tracked=max_tracked)


def checked(nonces: NonceSource, nonce: bytes, nc: int | None, now: int, owner: bytes = OWNER) -> NonceState:
    """Look, then use up, as the engine does."""
    state = nonces.inspect(nonce, now, owner)
    return nonces.use(nonce, nc, now) if state is NonceState.OK else state


def test_nonce_fresh_counts_up_and_each_count_passes_once() -> None:
    nonces = source()
    nonce = nonces.issue(NOW, b"r" * 8, OWNER)
    for count in (1, 2, 3, 10):
        assert checked(nonces, nonce, count, NOW) is NonceState.OK
        assert checked(nonces, nonce, count, NOW) is NonceState.REPLAYED
    assert checked(nonces, nonce, 5, NOW) is NonceState.OK  # overtaken on the way, not used before
    assert checked(nonces, nonce, 5, NOW) is NonceState.REPLAYED
    assert checked(nonces, nonce, 0, NOW) is NonceState.REPLAYED
    assert checked(nonces, nonce, None, NOW) is NonceState.REPLAYED


def test_nonce_first_count_zero_is_refused() -> None:
    nonces = source()
    assert checked(nonces, nonces.issue(NOW, b"r" * 8, OWNER), 0, NOW) is NonceState.REPLAYED


def test_nonce_without_count_passes_once() -> None:
    nonces = source()
    nonce = nonces.issue(NOW, b"r" * 8, OWNER)
    assert checked(nonces, nonce, None, NOW) is NonceState.OK
    assert checked(nonces, nonce, None, NOW) is NonceState.REPLAYED
    assert checked(nonces, nonce, 1, NOW) is NonceState.REPLAYED
    assert checked(nonces, nonce, 2**32 - 1, NOW) is NonceState.OK or NONCE_WINDOW < 1


@given(st.lists(st.one_of(st.integers(1, 80), st.integers(2**32 - 40, 2**32 - 1)), max_size=40))
def test_nonce_any_order_of_counts_never_passes_one_twice(counts: list[int]) -> None:
    nonces, used, highest = source(), set[int](), 0
    nonce = nonces.issue(NOW, b"r" * 8, OWNER)
    for count in counts:
        expected = count > highest or (highest - count < NONCE_WINDOW and count not in used)
        assert (checked(nonces, nonce, count, NOW) is NonceState.OK) is expected
        used.add(count)
        highest = max(highest, count)


def test_nonce_after_restart_with_the_same_key_verifies() -> None:
    nonce = source().issue(NOW, b"r" * 8, OWNER)
    assert checked(source(), nonce, 7, NOW + 300) is NonceState.OK
    assert checked(NonceSource(b"x" * 32, lifetime_s=300, max_tracked=9), nonce, 7, NOW) is NonceState.FORGED


@pytest.mark.parametrize(("age", "state"), [(0, "OK"), (300, "OK"), (301, "STALE"), (-60, "OK"), (-61, "STALE")])
def test_nonce_outside_its_lifetime_is_stale(age: int, state: str) -> None:
    nonces = source()
    assert checked(nonces, nonces.issue(NOW, b"r" * 8, OWNER), 1, NOW + age) is NonceState[state]


def test_nonce_used_once_is_stale_after_its_lifetime_and_forgotten() -> None:
    nonces = source()
    nonce = nonces.issue(NOW, b"r" * 8, OWNER)
    assert checked(nonces, nonce, 1, NOW) is NonceState.OK
    assert checked(nonces, nonce, 2, NOW + 301) is NonceState.STALE
    assert len(nonces) == 0


@given(st.integers(0, 47), st.integers(0, 255))
def test_nonce_changed_anywhere_is_forged(at: int, byte: int) -> None:
    nonces = source()
    nonce = nonces.issue(NOW, b"r" * 8, OWNER)
    changed = nonce[:at] + bytes((byte,)) + nonce[at + 1 :]
    assert (checked(nonces, changed, 1, NOW) is NonceState.FORGED) is (changed != nonce)


@given(st.binary(max_size=100))
def test_nonce_any_bytes_are_forged(nonce: bytes) -> None:
    assert checked(source(), nonce, 1, NOW) is NonceState.FORGED


def test_nonce_table_full_forgets_the_oldest_and_never_lets_it_pass_again() -> None:
    nonces = source(max_tracked=3)
    old = [nonces.issue(NOW + n, b"%08d" % n, OWNER) for n in range(3)]
    unused = nonces.issue(NOW, b"u" * 8, OWNER)
    assert [checked(nonces, nonce, 1, NOW + 3) for nonce in old] == [NonceState.OK] * 3
    assert checked(nonces, nonces.issue(NOW + 4, b"n" * 8, OWNER), 1, NOW + 4) is NonceState.OK
    assert len(nonces) == 3
    assert checked(nonces, old[0], 1, NOW + 4) is NonceState.STALE  # forgotten: cannot be told from a replay
    assert checked(nonces, unused, 1, NOW + 4) is NonceState.STALE  # as old as the forgotten one
    assert checked(nonces, old[1], 1, NOW + 4) is NonceState.REPLAYED
    assert checked(nonces, old[1], 2, NOW + 4) is NonceState.OK


def test_nonce_table_full_of_expired_entries_makes_room_without_forgetting_live_ones() -> None:
    nonces = source(max_tracked=3)
    for n in range(3):
        checked(nonces, nonces.issue(NOW, b"%08d" % n, OWNER), 1, NOW)
    later = [nonces.issue(NOW + 301, b"n%07d" % n, OWNER) for n in range(2)]
    assert [checked(nonces, nonce, 1, NOW + 301) for nonce in later] == [NonceState.OK] * 2
    assert len(nonces) == 2
    assert checked(nonces, nonces.issue(NOW + 290, b"v" * 8, OWNER), 1, NOW + 301) is NonceState.OK  # none live forgotten


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), max_size=60), st.integers(1, 4))
def test_nonce_table_of_any_size_is_bounded_and_lets_nothing_pass_twice(uses: list[tuple[int, int]], max_tracked: int) -> None:
    nonces, passed = source(max_tracked=max_tracked), set[tuple[int, int]]()
    issued = [nonces.issue(NOW + n // 3, b"%08d" % n, OWNER) for n in range(10)]
    for which, count in uses:
        if checked(nonces, issued[which], count, NOW + 10) is NonceState.OK:
            assert (which, count) not in passed
            passed.add((which, count))
        assert len(nonces) <= max_tracked


def test_nonce_source_weak_settings_are_our_fault() -> None:
    for key, lifetime_s, max_tracked in ((b"short", 1, 1), (KEY, 0, 1), (KEY, 1, 0)):
        with pytest.raises(ValueError, match="nonces need"):
            NonceSource(key, lifetime_s=lifetime_s, max_tracked=max_tracked)
    with pytest.raises(ValueError, match="random"):
        source().issue(NOW, b"short", OWNER)


def test_nonce_in_another_spelling_of_the_same_bytes_is_forged() -> None:
    """It would have a count of its own in a table that is keyed by what was written."""
    nonces = source()
    nonce = nonces.issue(NOW, b"\xff" * 8, OWNER)
    assert nonce.upper() != nonce
    assert checked(nonces, nonce.upper(), 1, NOW) is NonceState.FORGED
