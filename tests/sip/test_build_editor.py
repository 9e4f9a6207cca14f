"""Forwarding by slicing (RFC 3261 §16.6): the Editor against a model that keeps every element on its own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sip_strategies import LIST_KEYS, Line, Model, models

from sipproxy.sip.build import Editor
from sipproxy.sip.errors import ParseError
from sipproxy.sip.message import Request, parse_message

INVITE = (
    b"INVITE sip:b@example.com SIP/2.0\r\n"
    b"v: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1 ,\r\n SIP/2.0/TCP h;branch=z9hG4bK0\r\n"
    b"fRoM  :\r\n <sip:a@example.com>;tag=1\r\n"
    b"To: <sip:b@example.com>\r\n"
    b"Call-ID: c\r\n"
    b"CSeq: 1 INVITE\r\n"
    b"Route: <sip:p1;lr>,<sip:p2;lr>\r\n"
    b"Route: <sip:p3;lr>\r\n"
    b"Subject: \xff\xfe odd \t \r\n"
    b"l: 3\r\n\r\n\x00\r\n"
)


def request(data: bytes = INVITE) -> Request:
    message = parse_message(data)
    assert isinstance(message, Request)
    return message


def unfolded(value: bytes) -> bytes:
    return re.sub(rb"\r\n[ \t]+", b" ", value)


@given(models())
def test_editor_without_edits_is_byte_for_byte(model: Model) -> None:
    data = model.write()
    message = parse_message(data)
    assert Editor(message).to_bytes() == data
    assert message.raw == data
    assert message.body == model.body


@given(models())
def test_message_values_of_generated_lines_are_the_elements(model: Model) -> None:
    message = parse_message(model.write())
    for key in (*LIST_KEYS, b"from", b"to"):
        wanted = [unfolded(element).strip(b" \t") for line in model.lines if line.key == key for element in line.elements]
        assert message.values(key) == wanted
        assert message.has(key) is bool(wanted)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["push", "pop", "replace_first", "set", "remove", "append"]),
        st.sampled_from([*LIST_KEYS, b"max-forwards", b"Via", b"m"]),
        st.sampled_from([b"<sip:new@h;lr>", b"SIP/2.0/UDP p;branch=z9hG4bKx", b"70"]),
    ),
    max_size=6,
)


def apply_naively(model: Model, operation: str, name: bytes, value: bytes) -> None:
    """The six operations over elements, written without looking at bytes."""
    key = {b"m": b"contact"}.get(name, name).lower()
    at = [number for number, line in enumerate(model.lines) if line.key == key]
    new = Line(key, name + b": ", [value], [])
    if operation == "push" or (operation == "replace_first" and not at):
        model.lines.insert(at[0] if at else 0, new)
    elif operation == "append":
        model.lines.insert(at[-1] + 1 if at else len(model.lines), new)
    elif operation == "remove" or (operation == "set" and at):
        model.lines = [line for line in model.lines if line.key != key]
        if operation == "set":
            model.lines.insert(at[0], new)
    elif operation == "set":
        model.lines.append(new)
    elif at:
        line = model.lines[at[0]]
        if operation == "replace_first":
            line.elements[0] = value
        elif len(line.elements) == 1:
            del model.lines[at[0]]
        else:
            del line.elements[0], line.separators[0]


@settings(max_examples=300)
@given(models(), OPERATIONS)
def test_editor_any_operations_agree_with_the_model(model: Model, operations: list[tuple[str, bytes, bytes]]) -> None:
    """Other lines stay byte for byte and in order; the edited group has the elements that the model has."""
    editor = Editor(parse_message(model.write()))
    touched = set()
    for operation, name, value in operations:
        getattr(editor, operation)(name, value) if operation not in {"pop", "remove"} else getattr(editor, operation)(name)
        apply_naively(model, operation, name, value)
        touched.add({b"m": b"contact"}.get(name, name).lower())
    out = parse_message(editor.to_bytes())
    wanted = parse_message(model.write())
    assert out.keys == wanted.keys
    assert out.body == model.body
    assert out.start_line == model.start
    for key, line, model_line in zip(out.keys[1:], out.lines_raw[1:], model.lines, strict=True):
        if key not in touched:
            assert line == model_line.write()
    for key in touched:
        assert out.values(key) == wanted.values(key)
    if isinstance(out, Request):
        assert everything(editor.to_request()) == everything(out)


def everything(message: Request) -> list[object]:
    """All that a message is made of, and what its common headers say or why they cannot be read."""
    parts: list[object] = [
        message.raw,
        message.body_at,
        message.lines_raw,
        message.keys,
        message.first_line,
        message.shape.twice,
    ]
    parts += [message.method, message.uri, message.version, message.start_line]
    parts.append(message.faults)
    needed = ("via", "vias", "from_", "to", "call_id", "cseq", "max_forwards", "expires", "routes", "parsed_uri")
    parts += [getattr(message, view) for view in needed if view not in message.faults]
    for view in ("contacts", "record_routes"):
        try:
            parts.append(getattr(message, view))
        except ParseError as fault:
            parts.append(str(fault))
    return parts


@pytest.mark.parametrize(
    ("name", "value"), [(b"Subject", b"a\x00b"), (b"l", b"2"), (b"l", b"4"), (b"Content-Length", b"3"), (b"CSeq", b"1 INVITE")]
)
def test_editor_copy_that_would_not_be_parsed_is_no_request_either(name: bytes, value: bytes) -> None:
    """A control character, a length that is too small or too large, headers that come twice: as parse_message has it."""
    editor = Editor(request())
    editor.push(name, value)
    data = editor.to_bytes()
    try:
        wanted = everything(parse_message(data))  # type: ignore[arg-type]
    except ParseError as fault:
        with pytest.raises(ParseError, match=re.escape(str(fault))):
            editor.to_request()
    else:
        assert everything(editor.to_request()) == wanted


def test_editor_copy_with_too_many_headers_is_no_request() -> None:
    editor = Editor(request())
    with pytest.raises(ParseError, match="more than 8 header lines"):
        editor.to_request(max_headers=8)
    assert len(editor.to_request(max_headers=9).keys) == 10


def test_editor_untouched_elements_of_an_edited_line_stay_byte_for_byte() -> None:
    editor = Editor(request())
    editor.replace_first(b"via", b"SIP/2.0/UDP x;branch=z9hG4bK2")
    editor.pop(b"route")
    out = editor.to_bytes()
    assert b"v: SIP/2.0/UDP x;branch=z9hG4bK2,\r\n SIP/2.0/TCP h;branch=z9hG4bK0\r\nfRoM  :" in out
    assert b"Route: <sip:p2;lr>\r\nRoute: <sip:p3;lr>\r\nSubject: \xff\xfe odd \t \r\nl: 3\r\n\r\n\x00\r\n" in out


def test_editor_push_without_the_header_goes_to_the_top() -> None:
    editor = Editor(request())
    editor.push(b"Record-Route", b"<sip:p;lr>")
    editor.push(b"Via", b"SIP/2.0/UDP p;branch=z9hG4bK3")
    lines = editor.to_bytes().split(b"\r\n")
    assert lines[1:3] == [b"Record-Route: <sip:p;lr>", b"Via: SIP/2.0/UDP p;branch=z9hG4bK3"]


def test_editor_append_goes_below_its_group() -> None:
    editor = Editor(request())
    editor.append(b"Route", b"<sip:p4;lr>")
    editor.append(b"X-New", b"1")
    out = editor.to_bytes()
    assert b"Route: <sip:p3;lr>\r\nRoute: <sip:p4;lr>\r\nSubject" in out
    assert b"l: 3\r\nX-New: 1\r\n\r\n" in out


def test_editor_request_uri_replaces_only_the_uri() -> None:
    editor = Editor(request())
    editor.request_uri(b"sip:c@192.0.2.5:5062;transport=udp")
    assert editor.to_bytes().startswith(b"INVITE sip:c@192.0.2.5:5062;transport=udp SIP/2.0\r\nv: ")


@pytest.mark.parametrize("uri", [b"", b"sip:a b", b"sip:a\r\nX: y", b"sip:\xff"])
def test_editor_request_uri_that_would_break_the_start_line_is_our_fault(uri: bytes) -> None:
    with pytest.raises(ValueError, match="Request-URI"):
        Editor(request()).request_uri(uri)


@pytest.mark.parametrize("operation", ["push", "set", "append", "replace_first"])
@pytest.mark.parametrize(("name", "value"), [(b"Route", b"a\r\nX: y"), (b"Ro\nute", b"a"), (b"X", b"a\nb")])
def test_editor_line_end_in_a_value_is_our_fault(operation: str, name: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        getattr(Editor(request()), operation)(name, value)


def test_editor_pop_of_unbalanced_quotes_raises() -> None:
    editor = Editor(request(INVITE.replace(b"Route: <sip:p1;lr>", b'Route: "open <sip:p1;lr>')))
    with pytest.raises(ParseError):
        editor.pop(b"route")


def test_editor_lower_case_version_leaves_in_upper_case() -> None:
    """RFC 3261 §7.1: the version is case-insensitive, but MUST be sent in upper case."""
    assert Editor(request(INVITE.replace(b"SIP/2.0\r\nv", b"sip/2.0\r\nv"))).to_bytes() == INVITE
    response = parse_message(b"sip/2.0 200 OK\r\nCSeq: 1 INVITE\r\n\r\n")
    assert Editor(response).to_bytes() == b"SIP/2.0 200 OK\r\nCSeq: 1 INVITE\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "source", "stamped"),
    [
        # RFC 3581 §4: rport is filled in, and received is there even when it equals the sent-by.
        (b"192.0.2.9:5070;branch=z9;rport", ("192.0.2.9", 5070), b"192.0.2.9:5070;branch=z9;rport=5070;received=192.0.2.9"),
        (b"192.0.2.9;rport;branch=z9", ("198.51.100.1", 1024), b"192.0.2.9;rport=1024;branch=z9;received=198.51.100.1"),
        (b"[2001:db8::9]:5;rport", ("2001:db8::9", 6), b"[2001:db8::9]:5;rport=6;received=2001:db8::9"),
        # RFC 3261 §18.2.1: received only when the sent-by is a name or another address.
        (b"192.0.2.9:5070;branch=z9", ("192.0.2.9", 9999), b"192.0.2.9:5070;branch=z9"),
        (b"host.example;branch=z9", ("192.0.2.9", 5060), b"host.example;branch=z9;received=192.0.2.9"),
        (b"[2001:DB8:0::9];branch=z9", ("2001:db8::9", 5060), b"[2001:DB8:0::9];branch=z9"),
        (b"[2001:db8::8];branch=z9", ("2001:db8::9", 5060), b"[2001:db8::8];branch=z9;received=2001:db8::9"),
        (b"[2001:db8:::8];branch=z9", ("2001:db8::8", 5060), b"[2001:db8:::8];branch=z9;received=2001:db8::8"),
        # what the sender wrote into received or rport itself does not count
        (b"192.0.2.9;received=203.0.113.1;branch=z9", ("192.0.2.9", 5060), b"192.0.2.9;branch=z9"),
        (b"192.0.2.9;rport=1;received=203.0.113.1", ("192.0.2.9", 5060), b"192.0.2.9;rport=5060;received=192.0.2.9"),
        # what follows from the rest of the value is kept for the next branch; branches that look like what stands for them
        (b"192.0.2.9;branch=*;rport", ("192.0.2.9", 1), b"192.0.2.9;branch=*;rport=1;received=192.0.2.9"),
        (b"192.0.2.9;branch=z8;rport", ("192.0.2.9", 1), b"192.0.2.9;branch=z8;rport=1;received=192.0.2.9"),
        (b"192.0.2.9;branch=z8;rport", ("192.0.2.8", 2), b"192.0.2.9;branch=z8;rport=2;received=192.0.2.8"),
        (
            b'192.0.2.9;x=";branch=*";branch=z9;rport',
            ("192.0.2.9", 1),
            b'192.0.2.9;x=";branch=*";branch=z9;rport=1;received=192.0.2.9',
        ),
        (b"192.0.2.9;branch;rport", ("192.0.2.9", 1), b"192.0.2.9;branch;rport=1;received=192.0.2.9"),
    ],
)
def test_editor_of_stamped_request_says_where_it_came_from(sent: bytes, source: tuple[str, int], stamped: bytes) -> None:
    rest = b" ,\r\n SIP/2.0/TCP h;branch=z9hG4bK0"
    message = request(INVITE.replace(b"192.0.2.9;branch=z9hG4bK1" + rest, sent + rest))
    message.stamp(*source)
    out = Editor(message).to_bytes()
    first = re.search(rb"\r\nv: (SIP/2.0/UDP [^,]*)" + re.escape(rest.lstrip(b" ")), out)
    assert first is not None
    assert first[1].strip() == b"SIP/2.0/UDP " + stamped
    alone = request(INVITE.replace(b"192.0.2.9;branch=z9hG4bK1" + rest, sent))
    alone.stamp(*source)
    assert b"\r\nv: SIP/2.0/UDP " + stamped + b"\r\nfRoM" in Editor(alone).to_bytes()
    assert alone.via.raw == b"SIP/2.0/UDP " + sent  # the view stays as received


def test_stamp_again_from_elsewhere_replaces_the_stamp() -> None:
    message = request(INVITE.replace(b"z9hG4bK1 ", b"z9hG4bK1;rport "))
    message.stamp("192.0.2.1", 1)
    assert b";rport=1;received=192.0.2.1," in Editor(message).to_bytes()
    message.stamp("192.0.2.2", 2)
    assert b";rport=2;received=192.0.2.2," in Editor(message).to_bytes()


def test_editor_stamped_request_with_unreadable_via_leaves_it() -> None:
    data = INVITE.replace(b"SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1 ,", b"SIP/2.0/UDP ;;,")
    message = request(data)
    message.stamp("192.0.2.1", 1)
    assert Editor(message).to_bytes() == data
