"""Generated SIP messages, legal and odd: folds, compact forms, odd case, several values in a line, 8-bit, binary bodies."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

LONG_TO_COMPACT = {b"contact": b"m", b"supported": b"k", b"via": b"v", b"subject": b"s", b"from": b"f", b"to": b"t"}


@dataclass
class Line:
    """One header line: `key` long and lower case, the name as spelled, elements and what stands between them."""

    key: bytes
    prefix: bytes
    elements: list[bytes]
    separators: list[bytes]
    tail: bytes = b""

    def write(self) -> bytes:
        text = self.prefix
        for element, separator in zip(self.elements, [*self.separators, b""], strict=True):
            text += element + separator
        return text + self.tail


@dataclass
class Model:
    start: bytes
    lines: list[Line]
    body: bytes
    extra: list[bytes] = field(default_factory=list)

    def write(self) -> bytes:
        return b"\r\n".join([self.start, *(line.write() for line in self.lines), b"", self.body])


white = st.sampled_from([b"", b" ", b"  ", b"\t", b"\r\n ", b" \r\n\t", b"\r\n  \r\n "])
separators = st.builds(lambda a, b: a + b"," + b, white, white)

tokens = st.from_regex(rb"[A-Za-z0-9\-.!%*_+`'~]{1,8}", fullmatch=True)
texts = st.binary(max_size=8).map(lambda data: bytes(byte for byte in data if byte >= 0x20 and byte not in b'"\\\x7f'))
quoted = st.builds(
    lambda parts: b'"' + b"".join(parts) + b'"',
    st.lists(
        st.one_of(texts, st.sampled_from([b'\\"', b"\\\\", b"\\\x07", b"\\\x00", b",", b";", b"<", b"\r\n "])), max_size=4
    ),
)
hosts = st.sampled_from([b"example.com", b"192.0.2.1", b"[2001:db8::1]", b"a_b.internal"])
users = st.one_of(st.none(), st.from_regex(rb"[A-Za-z0-9\-_.!~*'()&=+$,;?/#]{1,10}", fullmatch=True), st.just(b"a%40b"))
ports = st.one_of(st.none(), st.integers(0, 65535))
param_names = st.from_regex(rb"[a-z0-9\-]{1,6}", fullmatch=True)


@st.composite
def uris(draw: st.DrawFn) -> bytes:
    user, port = draw(users), draw(ports)
    names = draw(st.lists(param_names, max_size=3, unique=True))
    text = draw(st.sampled_from([b"sip:", b"sips:", b"SIP:"])) + (b"" if user is None else user + b"@") + draw(hosts)
    text += b"" if port is None else b":%d" % port
    return text + b"".join(b";" + name + draw(st.sampled_from([b"", b"=v", b"=%41"])) for name in names)


@st.composite
def header_params(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(param_names, max_size=3, unique=True))
    text = b""
    for name in names:
        text += draw(white) + b";" + draw(white) + name
        if draw(st.booleans()):
            text += draw(white) + b"=" + draw(white) + draw(st.one_of(tokens, quoted))
    return text


@st.composite
def addresses(draw: st.DrawFn) -> bytes:
    display = draw(st.one_of(st.just(b""), quoted, tokens, st.just(b"Gr\xc3\xbc\xc3\x9fe ")))
    return display + draw(white) + b"<" + draw(uris()) + b">" + draw(header_params())


def spelled(key: bytes, how: int, flips: list[bool]) -> bytes:
    name = LONG_TO_COMPACT[key] if how == 0 and key in LONG_TO_COMPACT else key
    return bytes(ord(chr(byte).upper()) if flips[at % len(flips)] else byte for at, byte in enumerate(name))


@st.composite
def header_lines(draw: st.DrawFn, key: bytes, elements: st.SearchStrategy[list[bytes]]) -> Line:
    parts = draw(elements)
    name = spelled(key, draw(st.integers(0, 2)), draw(st.lists(st.booleans(), min_size=1, max_size=5)))
    prefix = name + draw(st.sampled_from([b":", b": ", b" :", b"\t: ", b":\r\n ", b":\t"]))
    return Line(key, prefix, parts, [draw(separators) for _ in parts[1:]], draw(st.sampled_from([b"", b"", b" ", b"\r\n "])))


vias = st.builds(
    lambda space, host, branch, rport: b"SIP/2.0/" + space + b"UDP " + host + b";branch=z9hG4bK" + branch + rport,
    st.sampled_from([b"", b" ", b"\r\n "]),
    hosts,
    tokens,
    st.sampled_from([b"", b";rport", b";received=192.0.2.77", b";rport=5;x"]),
)
comments = st.sampled_from([b"a (b, c) d", b"x (d (e, f))", b"(\\))"])
LIST_KEYS = (b"via", b"route", b"record-route", b"contact", b"supported", b"x-thing")


def _elements(key: bytes, *, most: int) -> st.SearchStrategy[list[bytes]]:
    one = {b"via": vias, b"supported": tokens, b"x-thing": st.one_of(tokens, quoted, comments)}.get(key, addresses())
    return st.lists(one, min_size=1, max_size=most)


@st.composite
def models(draw: st.DrawFn) -> Model:
    fixed = [
        draw(header_lines(b"via", _elements(b"via", most=3))),
        draw(header_lines(b"from", st.lists(addresses(), min_size=1, max_size=1))),
        draw(header_lines(b"to", st.lists(addresses(), min_size=1, max_size=1))),
        draw(header_lines(b"call-id", st.just([b'word`~)(><:\\/"][?}{@h']))),
        draw(header_lines(b"cseq", st.sampled_from([[b"1 INVITE"], [b"0009\r\n INVITE"]]))),
    ]
    keys = draw(st.lists(st.sampled_from(LIST_KEYS), max_size=6))
    more = [draw(header_lines(key, _elements(key, most=3))) for key in keys]
    lines = draw(st.permutations(fixed + more))
    body = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        lines = [*lines, Line(b"content-length", b"l : ", [b"%03d" % len(body)], [])]
    return Model(b"INVITE sip:a@example.com SIP/2.0", list(lines), body)
