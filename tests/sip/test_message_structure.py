"""Reading a message's structure (RFC 3261 §7) and what every message needs (§8.1.1, §16.3 item 1)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sip_strategies import Model, models

from sipproxy.sip import shape
from sipproxy.sip.build import Editor
from sipproxy.sip.errors import ParseError
from sipproxy.sip.headers import CSeq
from sipproxy.sip.message import MAX_HEADERS, Request, Response, check_message, parse_message, salvage
from sipproxy.sip.shape import SINGLE

REGISTER = (
    b"REGISTER sip:example.com SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 192.0.2.9:5070;branch=z9hG4bK1\r\n"
    b"Max-Forwards: 70\r\n"
    b"From: <sip:a@example.com>;tag=f1\r\n"
    b"To: <sip:a@example.com>\r\n"
    b"Call-ID: c@192.0.2.9\r\n"
    b"CSeq: 1 REGISTER\r\n"
    b"Contact: <sip:a@192.0.2.9:5070>;expires=60, *\r\n"
    b"Expires: 3600\r\n"
    b"Content-Length: 4\r\n\r\nbody"
)
OK = REGISTER.replace(b"REGISTER sip:example.com SIP/2.0", b"SIP/2.0 200 Alles klar").replace(b"Max-Forwards: 70\r\n", b"")


def refusal(data: bytes) -> ParseError:
    """The error of reading and checking `data`."""
    with pytest.raises(ParseError) as error:
        check_message(parse_message(data))
    return error.value


def test_request_views_are_read() -> None:
    message = parse_message(REGISTER)
    check_message(message)
    assert isinstance(message, Request)
    assert (message.method, message.uri, message.parsed_uri.host, message.source) == (
        b"REGISTER",
        b"sip:example.com",
        b"example.com",
        None,
    )
    assert (message.max_forwards, message.expires, message.content_length, message.body) == (70, 3600, 4, b"body")
    assert (message.call_id, message.cseq, message.from_.tag, message.to.tag) == (
        b"c@192.0.2.9",
        CSeq(1, b"REGISTER"),
        b"f1",
        None,
    )
    assert [contact.is_star for contact in message.contacts] == [False, True]
    assert (message.routes, message.record_routes, message.lines(b"x"), message.first(b"x")) == ((), (), [], None)
    assert repr(message) == "<Request 'REGISTER sip:example.com SIP/2.0'>"


def test_response_views_are_read() -> None:
    message = parse_message(OK)
    check_message(message)
    assert isinstance(message, Response)
    assert (message.status, message.reason, message.max_forwards) == (200, b"Alles klar", None)
    assert (message.is_final, message.is_success) == (True, True)
    assert repr(message) == "<Response 'SIP/2.0 200 Alles klar'>"


@pytest.mark.parametrize(
    ("status", "final", "success"),
    [(b"100", False, False), (b"199", False, False), (b"299", True, True), (b"300", True, False), (b"699", True, False)],
)
def test_response_class_follows_from_status(status: bytes, final: bool, success: bool) -> None:
    message = parse_message(OK.replace(b"200", status, 1))
    assert isinstance(message, Response)
    assert (message.is_final, message.is_success) == (final, success)


@pytest.mark.parametrize(
    "line",
    [
        b"SIP/2.0 099 x",
        b"SIP/2.0 700 x",
        b"SIP/2.0 20 x",
        b"SIP/2.0 2000 x",
        b"SIP/2.0 \xb2\xb9\xb9 x",
        b"SIP/2.0 200",
        b"SIP/2.0  200 OK",
        b"SIP/2.0 200 a\r\n b",
    ],
)
def test_status_line_malformed_is_dropped(line: bytes) -> None:
    error = refusal(OK.replace(b"SIP/2.0 200 Alles klar", line, 1))
    assert error.status == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"REGISTER  sip:example.com SIP/2.0", 400),
        (b"REGISTER sip:example.com  SIP/2.0", 400),
        (b"REGISTER sip:example.com SIP/2.0 ", 400),
        (b" REGISTER sip:example.com SIP/2.0", 400),
        (b"REGISTER\tsip:example.com SIP/2.0", 400),
        (b"REGISTER sip:example.com\r\n SIP/2.0", 400),
        (b"REGISTER sip:example.com SIP/2.0\r\n Via: x", 400),
        (b"REGIS(TER sip:example.com SIP/2.0", 400),
        (b"REGISTER <sip:example.com> SIP/2.0", 400),
        (b"REGISTER sip:example.com?Route=x SIP/2.0", 400),
        (b"REGISTER sip:example.com SIP/3.0", 505),
        (b"REGISTER sip:example.com SIP/2.00", 505),
        (b"REGISTER sip:example.com SIP/2", 400),
        (b"REGISTER sip:example.com SIP/2.x", 400),
        (b"REGISTER sip:example.com HTTP/1.1", 0),
        (b"REGISTER sip:example.com", 0),
        (b"ACK  sip:example.com SIP/2.0", 0),
        (b"R" * 65 + b" sip:example.com SIP/2.0", 400),
    ],
)
def test_request_line_malformed_is_refused(line: bytes, status: int) -> None:
    assert refusal(REGISTER.replace(b"REGISTER sip:example.com SIP/2.0", line, 1)).status == status


def test_version_in_any_case_is_version_2() -> None:
    check_message(parse_message(REGISTER.replace(b" SIP/2.0\r\n", b" sip/2.0\r\n", 1)))


@pytest.mark.parametrize(
    "line",
    [
        b"X",
        b"Via",
        b"X Y: 1",
        b": 1",
        b"X\x00: 1",
        b"X: \x00",
        b"X: a\x0bb",
        b"X: \x7f",
        b'X: "\x01"',
        b"X: \\\x01",
        b"X: a\rY: b",
        b"X: a\nY: b",
        b"X: a\n b",
        b'X: "\\\n"',
        b'X: "\\\r"',
        b"\xc3\xa4: 1",
        b"(X): 1",
        b"X\r\n : 1",
    ],
)
def test_header_line_with_two_readings_is_refused(line: bytes) -> None:
    for at in (b"Max-Forwards", b"Content-Length"):
        assert refusal(REGISTER.replace(at, line + b"\r\n" + at)).status == 400
    assert refusal(REGISTER.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")).status == 400


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"X-A: 1", b"1"),
        (b"x-a \t:\t1 ", b"1"),
        (b"X-A:", b""),
        (b"X-a:\r\n a: b\r\n\tc", b"a: b c"),
        (b'X-A: "\\\x00\\\x7f\\\x1f" x', b'"\\\x00\\\x7f\\\x1f" x'),
        (b"X-A: \xff\xfe\xe2\x80\xa8y", b"\xff\xfe\xe2\x80\xa8y"),
        (b"X-A: \r\n ", b""),
        (b"X-A: ;;,,;;", b";;,,;;"),
    ],
)
def test_header_line_with_one_reading_is_read_and_forwarded(line: bytes, value: bytes) -> None:
    data = REGISTER.replace(b"Max-Forwards", line + b"\r\nMax-Forwards")
    message = parse_message(data)
    check_message(message)
    assert message.first(b"x-a") == value
    assert message.lines(b"x-a") == [value]
    assert Editor(message).to_bytes() == data


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_header_of_single_instance_that_comes_twice_is_refused(name: bytes) -> None:
    value = parse_message(REGISTER).first(name) or b"1"
    present = REGISTER if parse_message(REGISTER).has(name) else REGISTER.replace(b"Max", name + b": " + value + b"\r\nMax", 1)
    check_message(parse_message(present))
    assert refusal(present.replace(b"Max", name.upper() + b" : " + value + b"\r\nMax", 1)).status == 400


@pytest.mark.parametrize("name", [b"Via", b"From", b"To", b"Call-ID", b"CSeq"])
def test_header_that_every_message_needs_missing_is_refused(name: bytes) -> None:
    for data, status in ((REGISTER, 400), (OK, 0)):
        start = data.index(b"\r\n" + name + b":")
        assert refusal(data[:start] + data[data.index(b"\r\n", start + 2) :]).status == status


@pytest.mark.parametrize(
    ("line", "views"),
    [
        (b"Via: SIP/2.0/UDP 192.0.2.9:5070;branch=z9hG4bK1", ["via", "vias"]),
        (b"From: <sip:a@example.com>;tag=f1", ["from_"]),
        (b"To: <sip:a@example.com>", ["to"]),
        (b"Call-ID: c@192.0.2.9", ["call_id"]),
        (b"CSeq: 1 REGISTER", ["cseq"]),
        (b"Max-Forwards: 70", ["max_forwards"]),
        (b"Expires: 3600", ["expires"]),
        (b"Route: <sip:p.example;lr>", ["routes"]),
    ],
)
def test_view_that_cannot_be_read_is_told_and_the_others_are_there(line: bytes, views: list[str]) -> None:
    data = REGISTER.replace(b"Expires", b"Route: <sip:p.example;lr>\r\nExpires", 1)
    whole, broken = parse_message(data), parse_message(data.replace(line, line.partition(b":")[0] + b": a b"))
    assert not whole.faults
    assert list(broken.faults) == views
    with pytest.raises(ParseError):
        broken.read_again(views[0])
    for view in ("via", "vias", "from_", "to", "call_id", "cseq", "max_forwards", "expires", "routes", "parsed_uri"):
        assert hasattr(broken, view) is (view not in views)
        assert view in views or getattr(broken, view) == getattr(whole, view)


def test_request_uri_that_cannot_be_read_is_told() -> None:
    broken = parse_message(REGISTER.replace(b"sip:example.com", b"sip:<", 1))
    assert broken.faults == ("parsed_uri",)
    with pytest.raises(ParseError):
        broken.read_again("parsed_uri")


def test_via_whose_first_value_alone_can_be_read_is_the_top_one() -> None:
    broken = parse_message(REGISTER.replace(b"bK1\r\n", b"bK1, nonsense\r\n"))
    assert broken.faults == ("vias",)
    assert broken.via == parse_message(REGISTER).via


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"CSeq: 1 REGISTER", b"CSeq: 1 INVITE"),
        (b"CSeq: 1 REGISTER", b"CSeq: 1 register"),
        (b"Max-Forwards: 70", b"Max-Forwards: 256"),
        (b"Max-Forwards: 70", b"Max-Forwards: -1"),
        (b"Max-Forwards: 70", b"Max-Forwards:"),
        (b"Expires: 3600", b"Expires: 4294967296"),
        (b"Expires: 3600", b"Expires: soon"),
        (b"Call-ID: c@192.0.2.9", b"Call-ID: a b"),
        (b"Call-ID: c@192.0.2.9", b"Call-ID:"),
        (b"To: <sip:a@example.com>", b"To: *"),
        (b"To: <sip:a@example.com>", b"To: <sip:a@example.com>;tag"),
        (b"From: <sip:a@example.com>;tag=f1", b'From: <sip:a@example.com>;tag="f1"'),
        (b"From: <sip:a@example.com>;tag=f1", b"From: <sip:a@example.com>;tag=f1, <sip:b@example.com>;tag=f2"),
        (b"Contact: <sip:a@192.0.2.9:5070>;expires=60, *", b"Contact: <sip:a@192.0.2.9:5070>,"),
        (b"Max-Forwards", b"Route: sip:p;lr\r\nMax-Forwards"),
        (b"Max-Forwards", b"Route: *\r\nMax-Forwards"),
        (b"Max-Forwards", b"Via: nonsense\r\nMax-Forwards"),
    ],
)
def test_header_malformed_is_refused(old: bytes, new: bytes) -> None:
    assert refusal(REGISTER.replace(old, new, 1)).status == 400


def test_fault_of_an_ack_is_dropped() -> None:
    """RFC 3261 §17.1.1.3: an ACK is never answered."""
    assert refusal(REGISTER.replace(b"REGISTER", b"ACK").replace(b"Max-Forwards: 70", b"Max-Forwards: x")).status == 0


@pytest.mark.parametrize(
    "value",
    [
        b"5",
        b"-4",
        b"+4",
        b"4 ",
        b"4, 4",
        b"",
        b"0x4",
        b"4_0",
        b"\xd9\xa4",
        b"\xc2\xb2",
        b"4e0",
        b"9" * 21,
        b"4;x",
        b"2147483648",
    ],
)
def test_content_length_that_is_not_the_body_is_refused(value: bytes) -> None:
    data = REGISTER.replace(b"Content-Length: 4", b"Content-Length: " + value)
    if value == b"4 ":
        check_message(parse_message(data))
    else:
        assert refusal(data).status == 400


def test_content_length_twice_is_refused_even_when_equal() -> None:
    assert refusal(REGISTER.replace(b"Content-Length", b"l: 4\r\nContent-Length")).status == 400


def test_datagram_beyond_content_length_is_cut_off() -> None:
    message = parse_message(b"\r\n\r\n" + REGISTER + b"INVITE sip:x SIP/2.0\r\n\r\n")
    assert message.raw == REGISTER
    assert message.body == b"body"


def test_datagram_without_content_length_is_all_body() -> None:
    message = parse_message(REGISTER.replace(b"Content-Length: 4\r\n", b"") + b"\r\n\r\nmore")
    assert message.body == b"body\r\n\r\nmore"


def test_datagram_of_empty_lines_or_garbage_is_dropped() -> None:
    for data in (b"", b"\r\n", b"\r\n\r\n", b"\x00" * 20, b"\x16\x03\x01", b"\r", b"\n\n"):
        assert refusal(data).status == 0


def test_header_lines_up_to_the_bound_are_read() -> None:
    lines = parse_message(REGISTER).keys
    room = MAX_HEADERS - (len(lines) - 1)
    check_message(parse_message(REGISTER.replace(b"Max", b"X-A: 1\r\n" * room + b"Max", 1)))
    assert refusal(REGISTER.replace(b"Max", b"X-A: 1\r\n" * (room + 1) + b"Max", 1)).status == 400
    with pytest.raises(ParseError):
        parse_message(REGISTER, max_headers=8)


def test_values_over_all_lines_are_bounded() -> None:
    message = parse_message(REGISTER.replace(b"Max", (b"Route: " + b"<sip:p>," * 149 + b"<sip:p>\r\n") * 2 + b"Max", 1))
    with pytest.raises(ParseError):
        message.values(b"route")


def test_compact_forms_and_any_case_are_the_same_header() -> None:
    data = REGISTER.replace(b"Via", b"V").replace(b"From", b"f").replace(b"To:", b"tO:").replace(b"Contact", b"M", 1)
    message = parse_message(data.replace(b"Content-Length", b"L"))
    check_message(message)
    assert message.content_length == 4
    assert [key for key in message.keys if key] == [key for key in parse_message(REGISTER).keys if key]


@given(models())
def test_message_generated_passes_the_check(model: Model) -> None:
    message = parse_message(model.write())
    check_message(message)
    assert message.keys[1:] == [line.key for line in model.lines]


MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["insert", "delete", "replace"]),
        st.sampled_from(
            [
                b"\r",
                b"\n",
                b"\r\n",
                b"\r\n ",
                b"\x00",
                b'"',
                b",",
                b";",
                b"<",
                b">",
                b":",
                b" ",
                b"(",
                b"\\",
                b"\xff",
                b"=",
                b"\r\n\r\n",
            ]
        ),
    ),
    max_size=5,
)


@settings(max_examples=300)
@given(models(), MUTATIONS)
def test_message_mutated_has_one_reading_or_is_refused(model: Model, mutations: list[tuple[float, str, bytes]]) -> None:
    """Whatever passes goes out as it came in, is read the same again, and its lines end with CRLF only."""
    data = model.write()
    for where, how, what in mutations:
        at = int(where * len(data))
        data = data[:at] + (b"" if how == "delete" else what) + data[at + (how != "insert") :]
    try:
        message = parse_message(data)
    except ParseError:
        salvage(data)
        return
    with suppress(ParseError):
        check_message(message)
    out = Editor(message).to_bytes()
    again = parse_message(out)
    if message.version == b"SIP/2.0":
        assert out == message.raw
    assert again.keys == message.keys
    assert [again.lines(key) for key in again.keys if key] == [message.lines(key) for key in message.keys if key]
    assert not any(b"\n" in line or b"\r" in line for key in message.keys if key for line in message.lines(key))


@given(
    st.one_of(
        st.binary(max_size=200), st.binary(max_size=100).map(lambda data: b"OPTIONS sip:a SIP/2.0\r\n" + data + b"\r\n\r\n")
    )
)
def test_message_any_bytes_raise_nothing_but_parse_error(data: bytes) -> None:
    with suppress(ParseError):
        check_message(parse_message(data))
    found = salvage(data)
    assert found is None or found.method != b"ACK"


@pytest.mark.parametrize(
    "line",
    [b'Authorization: Basic c2VjcmV0 "\x00"', b'response="c2VjcmV0"', b"Authorization Basic c2VjcmV0", b'x="c2VjcmV0" :'],
)
def test_refusal_text_holds_no_credential(line: bytes) -> None:
    error = refusal(REGISTER.replace(b"Max", line + b"\r\nMax", 1))
    assert "c2VjcmV0" not in str(error)


@pytest.mark.parametrize("length", [b"l: 4", b"Content-Length: 5", b"CONTENT-LENGTH : 4"])
def test_second_content_length_is_refused_before_the_body_is_cut(length: bytes) -> None:
    """The body must not be cut by one of two lengths, so `parse_message` itself refuses."""
    with pytest.raises(ParseError):
        parse_message(REGISTER.replace(b"Content-Length", length + b"\r\nContent-Length"))


def test_message_with_the_names_of_another_keeps_its_own_reading() -> None:
    """What a row of names says is remembered: a fold, a line without a colon and a name with spaces are not of that row."""
    names = (b"Via: SIP/2.0/UDP h;branch=z9hG4bK1", b"Subject: %s", b"CSeq: 1 OPTIONS")
    plain = b"\r\n".join((b"OPTIONS sip:h SIP/2.0", *names, b"", b""))
    keys = [b"", b"via", b"subject", b"cseq"]
    for _ in range(2):
        assert parse_message(plain % b"x").keys == keys
        folded = parse_message(plain % b"x\r\n CSeq: 2 OPTIONS")
        assert folded.keys == keys
        assert folded.values(b"subject") == [b"x CSeq: 2 OPTIONS"]
        with pytest.raises(ParseError, match="without a colon"):
            parse_message(plain % b"x\r\nfoo")
        with pytest.raises(ParseError, match="not a header name"):
            parse_message(plain % b"x\r\nfo o: y")


def test_message_rows_of_names_are_remembered_up_to_a_bound() -> None:
    start = b"OPTIONS sip:h SIP/2.0\r\n"
    for number in range(2 * shape.MAX_SHAPES):
        assert parse_message(start + b"X-%d: y\r\n\r\n" % number).has(b"x-%d" % number)
        assert len(shape.remembered) <= shape.MAX_SHAPES
    before = dict(shape.remembered)
    parse_message(start + b"X: y\r\n" * (shape.MAX_SHAPE_NAMES + 1) + b"\r\n")
    parse_message(start + b"X" * (shape.MAX_SHAPE_BYTES + 1) + b": y\r\n\r\n")
    assert shape.remembered == before
