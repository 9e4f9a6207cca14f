"""URIs (RFC 3261 §19.1), their comparison (§19.1.4) and what is not one."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sip_strategies import uris

from sipproxy.sip.errors import ParseError
from sipproxy.sip.uri import parse_uri, unescape, uris_equal


def test_uri_all_parts_are_told_apart() -> None:
    uri = parse_uri(b"SIPS:al%69ce;day=tue:p&w@[2001:DB8::1]:5061;Transport=TCP;lr?subject=a%20b&to=c")
    assert (uri.scheme, uri.user, uri.password, uri.host, uri.port) == (
        b"sips",
        b"al%69ce;day=tue",
        b"p&w",
        b"[2001:DB8::1]",
        5061,
    )
    assert uri.params == ((b"transport", b"TCP"), (b"lr", b""))
    assert (uri.param(b"transport"), uri.param(b"lr"), uri.param(b"maddr")) == (b"TCP", b"", None)
    assert (uri.headers, uri.host_text, uri.is_sip) == (b"subject=a%20b&to=c", "2001:db8::1", True)
    assert uri.raw == b"SIPS:al%69ce;day=tue:p&w@[2001:DB8::1]:5061;Transport=TCP;lr?subject=a%20b&to=c"


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        (b"sip:example.com", None, b"example.com", None),
        (b"sip:example.com:0005060", None, None, None),
        (b"sip:user:@h", b"user", b"h", None),
        (b"sip:*31#0201234@h", b"*31#0201234", b"h", None),
        (b"sip:user;par=u%40example.net@example.com", b"user;par=u%40example.net", b"example.com", None),
        (b"sip:a@[2001:db8::10:5070]", b"a", b"[2001:db8::10:5070]", None),
        (b"sip:a@[2001:db8::10]:5070", b"a", b"[2001:db8::10]", 5070),
        (b"sip:user@[2001:db8:::192.0.2.1]", b"user", b"[2001:db8:::192.0.2.1]", None),
        (b"sip:a?b/c@h.", b"a?b/c", b"h.", None),
    ],
)
def test_uri_user_host_and_port_are_found(text: bytes, user: bytes | None, host: bytes | None, port: int | None) -> None:
    if host is None:
        with pytest.raises(ParseError):
            parse_uri(text)
        return
    uri = parse_uri(text)
    assert (uri.user, uri.host, uri.port) == (user, host, port)


@pytest.mark.parametrize(
    ("text", "scheme", "opaque"),
    [
        (b"tel:+49-201;phone-context=x", b"tel", b"+49-201;phone-context=x"),
        (b"URN:service:sos.police", b"urn", b"service:sos.police"),
        (b"nobodyKnowsThisScheme:totallyopaquecontent", b"nobodyknowsthisscheme", b"totallyopaquecontent"),
        (b"soap.beep://192.0.2.103:3002", b"soap.beep", b"//192.0.2.103:3002"),
    ],
)
def test_uri_other_scheme_is_opaque(text: bytes, scheme: bytes, opaque: bytes) -> None:
    uri = parse_uri(text)
    assert (uri.scheme, uri.opaque, uri.user, uri.host, uri.is_sip) == (scheme, opaque, None, b"", False)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"sip",
        b"sip:",
        b"sip:@h",
        b"sip:a@",
        b"sip:a@b@c",
        b"sip:a b@h",
        b"sip:a@h b",
        b"<sip:a@h>",
        b"sip:a@h:",
        b"sip:a@h:x",
        b"sip:a@h:65536",
        b"sip:a@h:123456",
        b"sip:a@h:\xd9\xa1",
        b"sip:2001:db8::10",
        b"sip:a@[::1",
        b"sip:a@[g::]",
        b"sip:a@h;",
        b"sip:a@h;;lr",
        b"sip:a@h;=x",
        b"sip:a@h;x=",
        b"sip:a@h;x=y=z",
        b"sip:a@h;lr;LR",
        b"sip:a@h?",
        b"sip:a%4@h",
        b"sip:a%zz@h",
        b"sip:a@h;x=%4",
        b"sip:a\x00@h",
        b"sip:a@h\r\n",
        b"sip:a@h\n",
        b"sip:\xc3\xa4@h",
        b"sip:a@h;x=\xff",
        b"tel:",
        b"tel:1 2",
        b"1tel:1",
        b"tel:1\n",
        b"sip:-a@-h",
        b"sip:a@h" + b"".join(b";p%d" % n for n in range(65)),
    ],
)
def test_uri_malformed_is_refused(text: bytes) -> None:
    with pytest.raises(ParseError) as error:
        parse_uri(text)
    assert error.value.status == 400
    assert len(error.value.detail) < 160


# The pairs of §19.1.4, and those of its rules that the RFC gives no example for.
EQUAL = [
    (b"sip:%61lice@atlanta.com;transport=TCP", b"sip:alice@AtLanTa.CoM;Transport=tcp"),
    (b"sip:carol@chicago.com", b"sip:carol@chicago.com;newparam=5"),
    (b"sip:carol@chicago.com", b"sip:carol@chicago.com;security=on"),
    (
        b"sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
        b"sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
    ),
    (
        b"sip:alice@atlanta.com?subject=project%20x&priority=urgent",
        b"sip:alice@atlanta.com?priority=urgent&subject=project%20x",
    ),
    (b"sip:carol@chicago.com;newparam=5", b"sip:carol@chicago.com;security=on"),
    (b"sip:a@[2001:DB8:0::1]", b"sip:a@[2001:db8::1]"),
    (b"tel:+49-201-123", b"tel:+49201123"),
    (b"urn:service:sos", b"urn:service:sos"),
    (b"sip:a@[2001:db8:::1]", b"sip:a@[2001:DB8:::1]"),
]
DIFFERENT = [
    (b"SIP:ALICE@AtLanTa.CoM;Transport=udp", b"sip:alice@AtLanTa.CoM;Transport=UDP"),
    (b"sip:bob@biloxi.com", b"sip:bob@biloxi.com:5060"),
    (b"sip:bob@biloxi.com", b"sip:bob@biloxi.com;transport=udp"),
    (b"sip:bob@biloxi.com", b"sip:bob@biloxi.com:6000;transport=tcp"),
    (b"sip:carol@chicago.com", b"sip:carol@chicago.com?Subject=next%20meeting"),
    (b"sip:bob@phone21.boxesbybob.com", b"sip:bob@192.0.2.4"),
    (b"sip:carol@chicago.com;security=off", b"sip:carol@chicago.com;security=on"),
    (b"sip:a@h", b"sips:a@h"),
    (b"sip:a@h", b"sip:a@h;maddr=x"),
    (b"sip:a@h;user=phone", b"sip:a@h"),
    (b"sip:a@h;ttl=1", b"sip:a@h"),
    (b"sip:a:p@h", b"sip:a:P@h"),
    (b"sip:a:@h", b"sip:a@h"),
    (b"sip:a%3Bb@h", b"sip:a;b@h"),
    (b"sip:h", b"sip:a@h"),
    (b"tel:+49201123", b"tel:+49201124"),
    (b"urn:service:sos", b"urn:service:SOS"),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_uris_equal_by_section_19_1_4_match(a: bytes, b: bytes) -> None:
    assert uris_equal(parse_uri(a), parse_uri(b))
    assert uris_equal(parse_uri(b), parse_uri(a))


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_uris_different_by_section_19_1_4_do_not_match(a: bytes, b: bytes) -> None:
    assert not uris_equal(parse_uri(a), parse_uri(b))
    assert not uris_equal(parse_uri(b), parse_uri(a))


@given(uris())
def test_uri_generated_parses_and_equals_itself(text: bytes) -> None:
    uri = parse_uri(text)
    rest = re.sub(rb"\A(?:[^@]*@)?", b"", text.partition(b":")[2])
    assert rest.startswith(uri.host)
    assert uri.raw == text
    assert uris_equal(uri, parse_uri(text))
    # written again from its parts it is the same URI
    user = b"" if uri.user is None else uri.user + b"@"
    port = b"" if uri.port is None else b":%d" % uri.port
    params = b"".join(b";" + name + (b"=" + value if value else b"") for name, value in uri.params)
    assert uri.scheme + b":" + user + uri.host + port + params == b"%b:%b" % (uri.scheme, text.partition(b":")[2])


@given(st.one_of(st.binary(max_size=60), st.text(alphabet='sip:@;=?%[]a1.<>" \r\n', max_size=40).map(str.encode)))
def test_uri_any_bytes_raise_nothing_but_parse_error(data: bytes) -> None:
    try:
        uri = parse_uri(data)
    except ParseError:
        return
    assert uri.raw == data
    assert uri.scheme.isalpha() or uri.scheme[:1].isalpha()


def test_unescape_decodes_once() -> None:
    assert unescape(b"%2541%41%zz%") == b"%41A%zz%"


@pytest.mark.parametrize("filling", [b";", b";a", b"%41", b"a", b":", b"@", b"[", b"?", b"%", b"a;", b"a=", b"."])
def test_uri_hostile_repetition_takes_linear_time(filling: bytes) -> None:
    start = time.thread_time()
    for text in (b"sip:" + filling * 60000, b"sip:a@h;" + filling * 60000, b"sip:a@h?" + filling * 60000):
        try:
            parse_uri(text)
        except ParseError:
            continue
    assert time.thread_time() - start < 1, "what grows by the square takes several seconds"
