"""`python -m tests.fuzz.linear`: CPU time of every entry point while its input doubles. Exit status 1 where it grows by 2.5.

What is repeated are the pieces that make careless parsers quadratic: quotes that do not end, commas, parameters, folds,
escapes, nested brackets; in values of the store and in the journal, where lengths are written down, strings, lists and frames
are made longer. The best of several runs counts, and those of all sizes take turns, so that a busy machine is busy for all of
them; what an input of no size takes is taken off. Sizes are such that a run takes milliseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import msgspec

from cdr import codec as cdr_codec
from cdr.facts import Admit, End, Record
from cdr.segment import Header, write_frame, write_header
from policy import codec
from sipproxy.engine.structs import Binding
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import Flow
from sipproxy.sip.framing import StreamFramer
from tests.fuzz.targets import TARGETS
from tests.sim.conftest import town_snapshot

LIMIT = 2.5
ROUNDS = 7
AGAIN = 8
MADE_OF = ("digits", "quotes", "eighty")  # pieces that are as good as any where only lengths count
SIZES = (4096, 8192, 16_384, 32_768, 65_536)
NOISE_S = 0.0005  # what is faster says nothing
_VIA = b"Via: SIP/2.0/UDP a;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n"
PIECES = {
    "quotes": b'"', "escapes": b"\\\\", "commas": b",", "values": b"a,", "params": b";a", "valued": b";a=b", "spaces": b" ",
    "tabs": b"\t ", "folds": b"\r\n ", "brackets": b"<", "pairs": b"<>", "parens": b"(", "percent": b"%41",
    "double": b"%25", "digits": b"9", "colons": b":", "uris": b"<sip:a@b>,", "quoted": b'"a",', "at": b"@",
    "eighty": b"\xff", "equals": b"=", "lines": b"X: y\r\n", "vias": b"v: a\r\n", "crlf": b"\r\n",
}  # fmt: skip


class Row(NamedTuple):
    """Seconds by size, of one piece at one entry point."""

    target: str
    piece: str
    seconds: tuple[float, ...]

    @property
    def growth(self) -> float:
        """The largest growth for a doubling, as the mean of two in a row, of what is long enough to be measured: one alone
        shows the steps of the machine's caches."""
        pairs = zip(self.seconds, self.seconds[2:], strict=False)
        return max((sqrt(after / before) for before, after in pairs if before >= NOISE_S), default=1.0)


def framed(target: str, filling: bytes) -> bytes:
    """Input of an entry point with a filling where it hurts."""
    if target in MADE:
        return MADE[target](filling)
    if target in ("message", "engine", "framing", "capture"):
        mark = b"\x01" if target == "engine" else b""
        return mark + b"OPTIONS sip:a@b SIP/2.0\r\n" + _VIA + b"Contact: x" + filling + b"\r\nContent-Length: 0\r\n\r\n"
    head = {
        "digest": b"Digest a=",
        "uri": b"sip:a",
        "sdp": b"v=0\r\nm=",
        "config": b"[node]\nid = '",
        "files": b"line,profile\nL1,",
        "registration": b"Contact: <sip:alice@203.0.113.1>;x",
    }
    return head.get(target, b"") + filling


def _stun(filling: bytes) -> bytes:
    values = [filling[at : at + 4].ljust(4) for at in range(0, min(len(filling), 65_000), 8)]
    attributes = b"".join(b"\x80\x28\x00\x04" + value for value in values)
    return b"\x00\x01" + len(attributes).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + attributes


def _binding(filling: bytes) -> bytes:
    text = filling.decode("latin-1")
    found = Binding("k", "sip:alice@203.0.113.1:5060;x=" + text, Flow("UDP", 0, "203.0.113.1", 5060), (), "c1", 3, 2**41)
    paths = tuple(text[at : at + 32] for at in range(0, len(text), 32))
    return msgspec.msgpack.encode(msgspec.structs.replace(found, path=paths))


def _line(filling: bytes) -> bytes:
    line, text = town_snapshot().lines["L1"], filling.decode("latin-1")
    return codec.encode(replace(line, accounts=tuple(text[at : at + 8] for at in range(0, len(text), 8)), location=text))


def _record(filling: bytes) -> Record:
    text = filling.decode("latin-1")
    media = [text[at : at + 8] for at in range(0, len(text), 8)]
    return Record(
        id="c1", node="n1", direction="outgoing", setup_at_ms=1, account="alice", line="L1", user_agent=text, media=media
    )


def _segment(filling: bytes) -> bytes:
    """Frames of calls that began, half of which ended, and what is no frame behind them."""
    out, position = write_header(Header(0, 7, 0, 0, "n1")), 0
    for number in range(len(filling) // 256):
        call = Record(id=f"c{number}", node="n1", direction="outgoing", setup_at_ms=1, account="alice", line="L1")
        for fact in (Admit(call), End(msgspec.structs.replace(call, seq=number + 1, end_reason="normal")))[: 1 + number % 2]:
            frame = write_frame(cdr_codec.encode_fact(fact), position, 7)
            out, position = out + frame, position + len(frame)
    return out + filling[: len(filling) // 8]


MADE: dict[str, Callable[[bytes], bytes]] = {
    "stun": _stun,
    "bindings": _binding,
    "policy": _line,
    "facts": lambda filling: cdr_codec.encode_fact(Admit(_record(filling))),
    "journal": _segment,
}


def measure(target: str, piece: str, former: Sequence[float] = ()) -> Row:
    """The least CPU time of several runs for each size, and of `former` ones."""
    run = stream if target == "framing" else TARGETS[target].run
    filling = PIECES[piece]
    inputs = [framed(target, filling * (size // len(filling))) for size in (0, *SIZES)]
    best = [float("inf")] * len(inputs)
    for _ in range(ROUNDS):
        for number, data in enumerate(inputs):
            began = time.thread_time()
            run(data)
            best[number] = min(best[number], time.thread_time() - began)
    seconds = tuple(max(0.0, found - best[0]) for found in best[1:])
    return Row(target, piece, tuple(map(min, former, seconds)) if former else seconds)


def stream(data: bytes) -> None:
    """A stream in small chunks of one size: the target's own depend on the length."""
    framer = StreamFramer(2 * SIZES[-1])
    with suppress(ParseError):
        for at in range(0, len(data), 64):
            framer.feed(data[at : at + 64])


def settled(row: Row) -> Row:
    """A row that grows too fast, measured again until it does not or was often enough: what is quadratic stays so."""
    for _ in range(AGAIN):
        if row.growth < LIMIT:
            break
        row = measure(row.target, row.piece, row.seconds)
    return row


def main() -> int:
    bad = 0
    print(f"{'entry point':12} {'piece':10}" + "".join(f"{size // 1024:>7} k" for size in SIZES) + "  growth")
    for target in sys.argv[1:] or TARGETS:
        rows = [settled(measure(target, piece)) for piece in (PIECES if target not in MADE else MADE_OF)]
        worst = max(rows, key=lambda row: row.growth)
        for row in {worst, max(rows, key=lambda row: row.seconds[-1]), *(row for row in rows if row.growth >= LIMIT)}:
            shown = "".join(f"{1000 * seconds:9.2f}" for seconds in row.seconds)
            print(f"{row.target:12} {row.piece:10}{shown}  {row.growth:.2f}", flush=True)
            bad += row.growth >= LIMIT
    print("every doubling below 2.5" if not bad else f"{bad} grow faster")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
