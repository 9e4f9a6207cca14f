"""`python -m tests.fuzz.linear`: CPU time of every entry point while its input doubles. Exit status 1 where it grows by 2.5.

What is repeated are the pieces that make careless parsers quadratic: quotes that do not end, commas, parameters, folds,
escapes, nested brackets. The best of several runs counts; sizes are such that a run takes milliseconds.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.sip.errors import ParseError
from sipproxy.sip.framing import StreamFramer
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 2.5
ROUNDS = 7
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
        return max((sqrt(after / before) for before, after in pairs if after >= NOISE_S), default=1.0)


def framed(target: str, filling: bytes) -> bytes:
    """Input of an entry point with a filling where it hurts."""
    if target in ("message", "engine", "framing", "capture"):
        mark = b"\x01" if target == "engine" else b""
        return mark + b"OPTIONS sip:a@b SIP/2.0\r\n" + _VIA + b"Contact: x" + filling + b"\r\nContent-Length: 0\r\n\r\n"
    head = {
        "digest": b"Digest a=",
        "uri": b"sip:a",
        "sdp": b"v=0\r\nm=",
        "config": b"[node]\nid = '",
        "files": b"line,profile\nL1,",
    }
    return head.get(target, b"") + filling


def measure(target: str, piece: str) -> Row:
    run = stream if target == "framing" else TARGETS[target].run
    filling = PIECES[piece]
    return Row(target, piece, tuple(_best(run, framed(target, filling * (size // len(filling)))) for size in SIZES))


def _again(row: Row) -> Row:
    """The best of some more runs: a hiccup of the machine is none every time."""
    for _ in range(4):
        other = measure(row.target, row.piece)
        row = row._replace(seconds=tuple(map(min, row.seconds, other.seconds)))
    return row


def stream(data: bytes) -> None:
    """A stream in small chunks of one size: the target's own depend on the length."""
    framer = StreamFramer(2 * SIZES[-1])
    with suppress(ParseError):
        for at in range(0, len(data), 64):
            framer.feed(data[at : at + 64])


def _best(run: Callable[[bytes], None], data: bytes) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        run(data)
        best = min(best, time.process_time() - began)
    return best


def main() -> int:
    bad = 0
    print(f"{'entry point':12} {'piece':10}" + "".join(f"{size // 1024:>7} k" for size in SIZES) + "  growth")
    for target in (name for name in TARGETS if name not in ("bindings", "policy", "facts", "journal")):
        rows = [measure(target, piece) for piece in PIECES]
        rows = [_again(row) if row.growth >= LIMIT else row for row in rows]
        worst = max(rows, key=lambda row: row.growth)
        for row in {worst, max(rows, key=lambda row: row.seconds[-1]), *(row for row in rows if row.growth >= LIMIT)}:
            shown = "".join(f"{1000 * seconds:9.2f}" for seconds in row.seconds)
            print(f"{row.target:12} {row.piece:10}{shown}  {row.growth:.2f}", flush=True)
            bad += row.growth >= LIMIT
    print("every doubling below 2.5" if not bad else f"{bad} grow faster")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
