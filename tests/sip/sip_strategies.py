"""Generated SIP messages, legal and odd: folds, compact forms, odd case, several values in a line, 8-bit, binary bodies.

Hypothesis draws one seed and the rest follows from it: drawing every choice of a message one by one costs 40 ms each. A failing
example prints the message that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

LONG_TO_COMPACT = {b"contact": b"m", b"supported": b"k", b"via": b"v", b"subject": b"s", b"from": b"f", b"to": b"t"}
LIST_KEYS = (b"via", b"route", b"record-route", b"contact", b"supported", b"x-thing")
CALL_ID = b'word`~)(><:\\/"][?}{@h'  # RFC 4475 §3.1.1.2: all of it legal

WHITE = (b"", b" ", b"  ", b"\t", b"\r\n ", b" \r\n\t", b"\r\n  \r\n ")
TOKENS = (b"a", b"Z9", b"-.!%*_+`'~", b"0", b"tag", b"expires", b"100rel", b"%41%zz")
TEXTS = (b"", b" ", b"x  y", b"Gr\xc3\xbc\xc3\x9fe", b"\xff\x80", b"\xe2\x80\xa8", b"a@b:1/(c)", b"\t")
ESCAPES = (b'\\"', b"\\\\", b"\\\x07", b"\\\x00", b",", b";", b"<", b">", b"\r\n ")
USERS = (b"", b"a@", b"+49201@", b"a%40b@", b"a;b=c@", b"x,y@", b"*31#0@", b"o?p/q@", b"!~*'()&=+$@", b"_.-@")
HOSTS = (b"example.com", b"192.0.2.1", b"[2001:db8::1]", b"a_b.internal", b"h:5060", b"[::1]:0", b"h:65535")
PARAMS = (b"tag", b"lr", b"expires", b"q", b"x-1", b"transport")
COMMENTS = (b"a (b, c) d", b"x (d (e, f))", b"(\\))")


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

    def write(self) -> bytes:
        return b"\r\n".join([self.start, *(line.write() for line in self.lines), b"", self.body])


def quoted(random: Random) -> bytes:
    return b'"' + b"".join(random.choice(pool) for pool in (TEXTS, ESCAPES, TEXTS, ESCAPES)[: random.randrange(5)]) + b'"'


def uri(random: Random) -> bytes:
    names = random.sample(PARAMS, random.choice((0, 0, 1, 2)))
    params = b"".join(b";" + name + random.choice((b"", b"=v", b"=%41")) for name in names)
    return random.choice((b"sip:", b"sips:", b"SIP:")) + random.choice(USERS) + random.choice(HOSTS) + params


def header_params(random: Random) -> bytes:
    text = b""
    for name in random.sample(PARAMS, random.choice((0, 0, 1, 1, 2, 3))):
        text += random.choice(WHITE) + b";" + random.choice(WHITE) + random.choice((name, name.upper()))
        if name == b"tag" or random.random() < 0.7:
            text += random.choice(WHITE) + b"=" + random.choice(WHITE)
            text += random.choice(TOKENS) if name == b"tag" or random.random() < 0.7 else quoted(random)
    return text


def address(random: Random) -> bytes:
    display = random.choice((b"", b"", quoted(random), random.choice(TOKENS), b"Gr\xc3\xbc\xc3\x9fe ", b"two words"))
    return display + random.choice(WHITE) + b"<" + uri(random) + b">" + header_params(random)


def via(random: Random) -> bytes:
    rport = random.choice((b"", b";rport", b";received=192.0.2.77", b";rport=5;x", b" ; RPORT"))
    protocol = b"SIP/2.0/" + random.choice((b"", b" ", b"\r\n ")) + random.choice((b"UDP", b"tcp", b"X"))
    return protocol + b" " + random.choice(HOSTS) + b";branch=z9hG4bK" + random.choice(TOKENS) + rport


def element(key: bytes, random: Random) -> bytes:
    if key == b"via":
        return via(random)
    if key == b"supported":
        return random.choice(TOKENS)
    if key == b"x-thing":
        return random.choice((random.choice(TOKENS), quoted(random), random.choice(COMMENTS)))
    return address(random)


def header_line(key: bytes, elements: list[bytes], random: Random) -> Line:
    name = LONG_TO_COMPACT[key] if key in LONG_TO_COMPACT and random.random() < 0.3 else key
    name = random.choice((name, name.upper(), name.title(), name.swapcase()))
    prefix = name + random.choice((b":", b": ", b": ", b" :", b"\t: ", b":\r\n ", b":\t"))
    separators = [random.choice(WHITE) + b"," + random.choice(WHITE) for _ in elements[1:]]
    return Line(key, prefix, elements, separators, random.choice((b"", b"", b" ", b"\r\n ")))


def model(random: Random) -> Model:
    keys = [b"via", *(random.choice(LIST_KEYS) for _ in range(random.randrange(7)))]
    lines = [header_line(key, [element(key, random) for _ in range(random.choice((1, 1, 2, 3)))], random) for key in keys]
    lines += [header_line(key, [address(random)], random) for key in (b"from", b"to")]
    lines.append(header_line(b"call-id", [CALL_ID], random))
    lines.append(header_line(b"cseq", [random.choice((b"1 INVITE", b"0009\r\n INVITE"))], random))
    random.shuffle(lines)
    body = random.randbytes(random.choice((0, 3, 40)))
    if random.random() < 0.5:
        lines.append(Line(b"content-length", b"l : ", [b"%03d" % len(body)], []))
    return Model(b"INVITE sip:a@example.com SIP/2.0", lines, body)


def models() -> st.SearchStrategy[Model]:
    return st.integers(0, 2**32 - 1).map(lambda seed: model(Random(seed)))


def uris() -> st.SearchStrategy[bytes]:
    return st.integers(0, 2**32 - 1).map(lambda seed: uri(Random(seed)))


def addresses() -> st.SearchStrategy[bytes]:
    return st.integers(0, 2**32 - 1).map(lambda seed: address(Random(seed)))


def vias() -> st.SearchStrategy[bytes]:
    return st.integers(0, 2**32 - 1).map(lambda seed: via(Random(seed)))
