"""Header field values (RFC 3261 §20): Via, addresses, CSeq, comma lists, names."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sip_strategies import CALL_ID, Model, addresses, models, vias

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import quote, unfold, unquote
from sipproxy.sip.headers import (
    COMPACT,
    MAX_ELEMENTS,
    CSeq,
    canonical_name,
    parse_cseq,
    parse_frame,
    parse_name_addr,
    parse_via,
    split_commas,
)
from sipproxy.sip.lines import vias_of
from sipproxy.sip.message import parse_message


def test_via_parts_are_told_apart() -> None:
    via = parse_via(
        b"SIP / 2.0 /\tudp  Host.Example:5070 ;branch=z9hG4bK1; RPORT ;received=2001:db8::9:255;ttl = 16;maddr=[::1]"
    )
    assert (via.transport, via.host, via.port, via.branch) == ("UDP", b"Host.Example", 5070, b"z9hG4bK1")
    assert (via.param(b"rport"), via.param(b"received"), via.param(b"ttl")) == (b"", b"2001:db8::9:255", b"16")
    assert (via.param(b"maddr"), via.param(b"x")) == (b"[::1]", None)


def test_via_without_branch_or_port_has_none() -> None:
    via = parse_via(b"SIP/2.0/NEWTRANS [2001:db8::1]")
    assert (via.transport, via.host, via.port, via.branch, via.params) == ("NEWTRANS", b"[2001:db8::1]", None, None, ())


@pytest.mark.parametrize(
    ("params", "branch"),
    [
        (b";rport;branch=z9hG4bK1;x=y", b"z9hG4bK1"),
        (b";branch=*", b"*"),
        (b";BRANCH=a;x=b", b"a"),
        (b"; branch = a ;x", b"a"),
        (b";branch=a/b", b"a/b"),
        (b';branch="a"', b'"a"'),
        (b";branch", None),
        (b';x="a;branch=b;c"', None),
        (b';x="a;branch=b;c";branch=d', b"d"),
        (b';x="a;branch=b;c";branch=*', b"*"),
        (b';branch=d;x="a;branch=b"', b"d"),
    ],
)
def test_via_branch_is_the_parameter_and_nothing_between_quotes(params: bytes, branch: bytes | None) -> None:
    text = b"SIP/2.0/UDP h" + params
    for via in (parse_via(text), *vias_of[b"Via: " + text], *vias_of[b"v : " + text + b" "], *vias_of[b"Via:\r\n " + text]):
        found = (via.branch, via.param(b"branch") or None, dict(via.params).get(b"branch") or None, via.raw)
        assert found == (*[branch] * 3, text)
        assert via.params == parse_frame(text).params
    (other,) = vias_of[b"Via: " + text.replace(b"z9hG4bK1", b"z9hG4bK2")]
    assert other.branch == (b"z9hG4bK2" if branch == b"z9hG4bK1" else branch)
    several = vias_of[b"Via: " + text + b", " + text + b";y"]
    assert [(via.branch, via.raw) for via in several] == [(branch, text), (branch, text + b";y")]


def test_via_values_of_one_line_are_told_apart_where_the_last_alone_has_a_branch() -> None:
    found = vias_of[b"Via: SIP/2.0/UDP h;rport, SIP/2.0/TCP i;branch=b;x"]
    assert [(via.transport, via.host, via.branch, via.raw) for via in found] == [
        ("UDP", b"h", None, b"SIP/2.0/UDP h;rport"),
        ("TCP", b"i", b"b", b"SIP/2.0/TCP i;branch=b;x"),
    ]


@pytest.mark.parametrize("params", [b";branch=a;branch=b", b";branch=*;Branch=*", b";branch=a;;b", b";branch=a;x;X"])
def test_via_whose_branch_is_read_apart_is_refused_as_a_whole(params: bytes) -> None:
    for text in (b"SIP/2.0/UDP h" + params, b"SIP/2.0/UDP h" + params.replace(b"=a", b"=z9")):
        with pytest.raises(ParseError):
            parse_via(text)
        with pytest.raises(ParseError):
            _ = vias_of[b"Via: " + text]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"//",
        b"SIP/2.0",
        b"SIP/2.0/UDP",
        b"SIP/2.0/UDP ",
        b"SIP/2.0 UDP h",
        b"SIP/2.0/UDPh",
        b"SIP/2.0/UDP h:",
        b"SIP/2.0/UDP h:0x1",
        b"SIP/2.0/UDP h:65536",
        b"SIP/2.0/UDP h;",
        b"SIP/2.0/UDP h;;a",
        b"SIP/2.0/UDP h;a=",
        b"SIP/2.0/UDP h;a;A",
        b"SIP/2.0/UDP h i",
        b"SIP/2.0/UDP h,SIP/2.0/UDP i",
        b'SIP/2.0/UDP h;a="',
        b"SIP/2.0/UDP 2001:db8::1",
        b"SIP/2.0/\x16UD h",
        b"SIP/2.0/UDP h\r\n",
    ],
)
def test_via_malformed_is_refused(text: bytes) -> None:
    with pytest.raises(ParseError):
        parse_via(text)


@pytest.mark.parametrize(
    ("text", "display", "uri", "params"),
    [
        (b"<sip:a@h>", b"", b"sip:a@h", ()),
        (b"caller<sip:a@h>", b"caller", b"sip:a@h", ()),
        (b"A. B~  C\t<sip:a@h>;tag=1", b"A. B~  C", b"sip:a@h", ((b"tag", b"1"),)),
        (b'"a\\"b<,>\\\\" <sip:a@h;x=1>;Q=0.5;flag', b'a"b<,>\\', b"sip:a@h;x=1", ((b"q", b"0.5"), (b"flag", b""))),
        (b'"" <tel:+49>', b"", b"tel:+49", ()),
        (b"Gr\xc3\xbc\xc3\x9fe <sip:a@h>", b"Gr\xc3\xbc\xc3\x9fe", b"sip:a@h", ()),
        (b"sip:a@h;tag=1", b"", b"sip:a@h", ((b"tag", b"1"),)),
        (b'sip:+1@h ; tag = x==/@ ; p = "q;,"', b"", b"sip:+1@h", ((b"tag", b"x==/@"), (b"p", b'"q;,"'))),
        (b"  <sip:a@h> ", b"", b"sip:a@h", ()),
        (b"<sip:a@h?Route=%3Csip:x%3E>", b"", b"sip:a@h?Route=%3Csip:x%3E", ()),
    ],
)
def test_name_addr_forms_are_read(
    text: bytes, display: bytes, uri: bytes, params: tuple[tuple[bytes, bytes | None], ...]
) -> None:
    address = parse_name_addr(text)
    assert (address.display, address.uri.raw, address.params, address.is_star) == (display, uri, params, False)
    assert address.tag == dict(params).get(b"tag")


def test_name_addr_star_is_star() -> None:
    star = parse_name_addr(b" * ")
    assert star.is_star
    assert star.uri.scheme == b"*"
    assert not star.uri.is_sip


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<>",
        b"<sip:a@h",
        b"sip:a@h>",
        b"Bell, A <sip:a@h>",
        b'"open <sip:a@h>',
        b"< sip:a@h >",
        b"<sip:a@h>;",
        b"<sip:a@h>;;a",
        b"<sip:a@h> x",
        b"<sip:a@h>;tag=1;tag=2",
        b"<sip:a@h>;tag=1;TAG=1",
        b"<sip:a@h>, <sip:b@h>",
        b"sip:a@h, sip:b@h",
        b"sip:a@h?x=y",
        b"sip:a@h b",
        b"*;q=1",
        b"**",
        b"(c) <sip:a@h>",
        b'a"b" <sip:a@h>',
        b'"a"b <sip:a@h>',
        b'<sip:a@h>;t="x',
        b"<sip:a@h>;t=a b",
        b"<<sip:a@h>>",
        b"<sip:a@h>;t =",
        b"<sip:a@h>;\xc3\xa4=1",
        b"<sip:a@h>;t=a\x00",
        b"<sip:a@h>" + b"".join(b";p%d" % n for n in range(65)),
    ],
)
def test_name_addr_malformed_is_refused(text: bytes) -> None:
    with pytest.raises(ParseError):
        parse_name_addr(text)


@pytest.mark.parametrize(
    ("text", "tag", "uri"),
    [
        (b"<sip:a@h>;tag=1", b"1", b"sip:a@h"),
        (b'"x;tag=2" <sip:a@h>;tag=1', b"1", b"sip:a@h"),
        (b'"x;tag=2" <sip:a@h>', None, b"sip:a@h"),
        (b"<sip:a@h;tag=2>", None, b"sip:a@h;tag=2"),
        (b"<sip:a@h;tag=2>;tag=1", b"1", b"sip:a@h;tag=2"),
        (b'<sip:a@h>;x="y;tag=2"', None, b"sip:a@h"),
        (b'<sip:a@h>;x="y;tag=2";tag=1', b"1", b"sip:a@h"),
        (b"<sip:a@h>;tag=1;x=y", b"1", b"sip:a@h"),
        (b"sip:a@h ;tag=1", b"1", b"sip:a@h"),
        (b"<sip:a@h>;TAG=1", b"1", b"sip:a@h"),
    ],
)
def test_tag_is_the_header_s_parameter_wherever_else_it_is_written(text: bytes, tag: bytes | None, uri: bytes) -> None:
    address = parse_name_addr(text)
    assert (address.tag, address.param(b"tag"), address.uri.raw, address.raw) == (tag, tag, uri, text)


@pytest.mark.parametrize(
    "text",
    [
        b"*;tag=1",
        b" * ;tag=1",
        b"<sip:a@h>;tag;tag=1",
        b"<sip:a@h>;Tag=2;tag=1",
        b'"open <sip:a@h>;tag=1',
        b'<sip:a@h>;x="open;tag=1',
        b"<sip:a@h;tag=1",
        b";tag=1",
        b"<sip:a@h>" + b"".join(b";p%d" % n for n in range(64)) + b";tag=1",
    ],
)
def test_name_addr_that_is_not_sound_without_its_tag_is_refused_with_it(text: bytes) -> None:
    with pytest.raises(ParseError):
        parse_name_addr(text)


def test_name_addr_empty_quoted_value_and_empty_tag() -> None:
    assert parse_name_addr(b'<sip:a@h>;x=""').param(b"x") == b'""'
    assert parse_name_addr(b"<sip:a@h>;tag").tag is None


@given(addresses())
def test_name_addr_generated_is_read_back(text: bytes) -> None:
    address = parse_name_addr(unfold(text))
    again = b"%b <%b>" % (quote(address.display.replace(b"\r", b"")), address.uri.raw)
    again += b"".join(b";" + name + (b"=" + value if value else b"") for name, value in address.params)
    second = parse_name_addr(again)
    assert (second.display, second.uri, second.params) == (address.display, address.uri, address.params)


@given(vias())
def test_via_generated_is_read_back(text: bytes) -> None:
    via = parse_via(unfold(text))
    port = b"" if via.port is None else b":%d" % via.port
    again = b"SIP/2.0/%b %b%b" % (via.transport.encode(), via.host, port)
    again += b"".join(b";" + name + (b"=" + value if value else b"") for name, value in via.params)
    second = parse_via(again)
    for part in ("transport", "host", "port", "params", "branch"):
        assert getattr(second, part) == getattr(via, part)


@pytest.mark.parametrize(
    ("text", "number", "method"),
    [
        (b"1 INVITE", 1, b"INVITE"),
        (b"0009  \t INVITE", 9, b"INVITE"),
        (b"2147483647 a'~", 2**31 - 1, b"a'~"),
        (b"0 X", 0, b"X"),
    ],
)
def test_cseq_sound_is_read(text: bytes, number: int, method: bytes) -> None:
    assert parse_cseq(text) == CSeq(number, method)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"INVITE",
        b"1INVITE",
        b"-1 A",
        b"+1 A",
        b"2147483648 A",
        b"1 A B",
        b"1 A\n",
        b"\xb2 A",
        b"\xd9\xa1 A",
        b"1 (",
        b"0" * 21 + b" A",
    ],
)
def test_cseq_malformed_or_too_large_is_refused(text: bytes) -> None:
    """RFC 3261 §8.1.1.5: MUST be less than 2**31."""
    with pytest.raises(ParseError):
        parse_cseq(text)


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        (b"", []),
        (b" \t", []),
        (b"a", [b"a"]),
        (b" a ,\tb", [b"a", b"b"]),
        (b'"a,b",c', [b'"a,b"', b"c"]),
        (b'"a\\",b",c', [b'"a\\",b"', b"c"]),
        (b"<sip:a,b@h>;x=1,<sip:c>", [b"<sip:a,b@h>;x=1", b"<sip:c>"]),
        (b"A (b, (c, d) \\)),e", [b"A (b, (c, d) \\))", b"e"]),
        (b"a\r\n ,\r\n b", [b"a", b"b"]),
    ],
)
def test_split_commas_respects_quotes_brackets_and_comments(text: bytes, elements: list[bytes]) -> None:
    assert split_commas(text) == elements


@pytest.mark.parametrize(
    "text", [b",", b"a,", b",a", b"a,,b", b'"a,b', b"<a,b", b"(a,b", b'"",', b"<a>,,<b>", b"a" + b",a" * MAX_ELEMENTS]
)
def test_split_commas_empty_unbalanced_or_too_many_is_refused(text: bytes) -> None:
    with pytest.raises(ParseError):
        split_commas(text)


def test_split_commas_as_many_as_allowed_are_split() -> None:
    assert len(split_commas(b"a" + b",a" * (MAX_ELEMENTS - 1))) == MAX_ELEMENTS
    assert len(split_commas(b"<a>" + b",<a>" * (MAX_ELEMENTS - 1))) == MAX_ELEMENTS


@given(st.binary(max_size=50))
def test_split_commas_any_bytes_lose_nothing(data: bytes) -> None:
    try:
        elements = split_commas(data)
    except ParseError:
        return
    assert b",".join(elements).translate(None, b" \t\r\n") == data.translate(None, b" \t\r\n")


@pytest.mark.parametrize(("short", "long"), sorted(COMPACT.items()))
def test_canonical_name_compact_form_is_the_long_one(short: bytes, long: bytes) -> None:
    assert canonical_name(short) == canonical_name(short.upper()) == canonical_name(long.title()) == long


@pytest.mark.parametrize("name", [b"", b"a b", b"a\x00", b"X-Trun\xe2\x84\xaa", b"a:", b"(a)", b"a\n"])
def test_canonical_name_that_is_no_token_is_refused(name: bytes) -> None:
    with pytest.raises(ParseError):
        canonical_name(name)


@given(st.binary(max_size=30).filter(lambda data: b"\r" not in data and b"\n" not in data))
def test_quote_and_unquote_are_inverse(data: bytes) -> None:
    assert unquote(quote(data)) == data


def test_quote_line_end_is_our_fault() -> None:
    with pytest.raises(ValueError, match="line end"):
        quote(b"a\r\nb")


@given(st.one_of(st.binary(max_size=60), st.text(alphabet='sip:@;=,<>"\\ \t\r\nSIP/2.0/UDP*()', max_size=40).map(str.encode)))
def test_headers_any_bytes_raise_nothing_but_parse_error(data: bytes) -> None:
    for parse in (parse_via, parse_name_addr, parse_cseq, split_commas, canonical_name):
        try:
            parse(data)
        except ParseError:
            continue


@pytest.mark.parametrize(
    "filling",
    [
        b";",
        b";a",
        b";a=b",
        b",",
        b'"',
        b'\\"',
        b" ",
        b"\t;",
        b"(",
        b"()",
        b"<",
        b"<>",
        b"a ",
        b"a,",
        b"\\",
        b"/",
        b" /",
        b"(\\",
        b"\x80 ",
    ],
)
def test_headers_hostile_repetition_takes_linear_time(filling: bytes) -> None:
    start = time.thread_time()
    for before in (b"", b"<sip:a@b>", b'"', b"(", b"SIP/2.0/UDP h", b"<sip:a@b>;a=", b"1 ", b"a,"):
        for parse in (parse_via, parse_name_addr, parse_cseq, split_commas):
            try:
                parse(before + filling * 60000)
            except ParseError:
                continue
    assert time.thread_time() - start < 2, "32 values of 120 kB: what grows by the square takes seconds for one"


@given(models())
def test_message_views_of_generated_lines_agree_with_the_parts(model: Model) -> None:
    message = parse_message(model.write())
    assert [via.raw for via in message.vias] == message.values(b"via")
    assert message.via == message.vias[0]
    assert (message.call_id, message.cseq.method) == (CALL_ID, b"INVITE")
    assert [contact.raw for contact in message.contacts] == message.values(b"contact")
    assert [route.raw for route in message.routes] == message.values(b"route")
