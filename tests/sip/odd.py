"""Messages that are valid and as odd as they come: case, white space, folds, compact forms, unknown names, 8-bit, bodies.

What is made here is made of a seeded generator, so that it can be made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.sip.grammar import unfold
from sipproxy.sip.headers import COMPACT

if TYPE_CHECKING:
    from random import Random

SHORT = {name: compact for compact, name in COMPACT.items()}

NAMES = (
    b"X-Odd",
    b"s",
    b"Accept-Language",
    b"u",
    b"Reason",
    b"a.b-c_d!%*+`'~",
    b"Alert-Info",
)
PARTS = (
    b"plain",
    b"a, b",
    b'"quo\\"ted, <x>"',
    b"\xc3\xa9\xff\x80",
    b'x;y="z";w',
    b"(comment (nested))",
    b"\r\n folded",
    b"\r\n\t \r\n more",
    b"%41%zz",
    b"\xe2\x80\xa8",
)
COLONS = (b":", b": ", b" :", b"\t:\t", b":\r\n ", b"  :  ")
BODIES = (
    b"",
    b"\x00\xff" * 9,
    bytes(range(256)),
    b"--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b\r\n\r\n\x00\r\n--b--\r\n",
    b"\r\n\r\n",
)
KINDS = (b"application/sdp", b"multipart/mixed; boundary=b", b"application/octet-stream", b'text/plain;charset="x"')


def odd_lines(random: Random) -> list[bytes]:
    """Header lines that nobody but their receiver has to understand, as legal and as odd as they come."""
    found = []
    for _ in range(random.randrange(1, 8)):
        name = bytes(random.choice((byte, byte ^ 32)) if chr(byte).isalpha() else byte for byte in random.choice(NAMES))
        value = b" ".join(random.choice(PARTS) for _ in range(random.randrange(4)))
        found.append(name + random.choice(COLONS) + value.removeprefix(b"\r\n").strip())
    return found


def split(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Start line, header lines (folded ones whole), body."""
    head, body = data.split(b"\r\n\r\n", 1)
    start, *rest = head.split(b"\r\n")
    lines: list[bytes] = []
    for line in rest:
        if line[:1] in (b" ", b"\t"):
            lines[-1] += b"\r\n" + line
        else:
            lines.append(line)
    return start, lines, body


def name_of(line: bytes) -> bytes:
    """The header's name in full and in lower case."""
    return COMPACT.get(found := line.split(b":", 1)[0].strip().lower(), found)


def disguised(data: bytes, random: Random, *, body: bytes | None = None) -> bytes:
    """The same message to whoever reads it by RFC 3261 §7.3, written another way and with lines that mean nothing to a proxy;
    with `body` for its body where that is given."""
    start, lines, own = split(data)
    body = own if body is None else body
    length = random.choice((b"Content-Length", b"l", b"CONTENT-length")) + random.choice(COLONS) + b"%d" % len(body)
    kept = [_respelt(line, random) for line in lines if name_of(line) != b"content-length"]
    if body is not own:
        kept = [line for line in kept if name_of(line) != b"content-type"]
        kept.append(random.choice((b"Content-Type: ", b"c:", b"cOnTeNt-TyPe : ")) + random.choice(KINDS))
    for line in (*odd_lines(random), length):
        kept.insert(random.randrange(len(kept) + 1), line)
    return b"\r\n".join((start, *kept, b"", body))


def _respelt(line: bytes, random: Random) -> bytes:
    name, _, value = line.partition(b":")
    key = name_of(line)
    if key in SHORT and random.random() < 0.3:
        name = SHORT[key]
    name = bytes(byte ^ 32 if chr(byte).isalpha() and random.random() < 0.3 else byte for byte in name.strip())
    value = unfold(value).strip(b" \t")
    if key == b"cseq":
        value = value.replace(b" ", random.choice((b" ", b"  ", b"\r\n\t")))
    elif key in (b"from", b"to"):
        value = value.replace(b">;tag", random.choice((b">;tag", b"> ; tag", b">\r\n ;tag")))
    return name + random.choice(COLONS) + value
