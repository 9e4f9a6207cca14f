"""Proof that no final record is missing, double or different between a node's journal, the stream and what a reader has.

Each node numbers its final records from 1 without gaps. A `Holding` is what one place has of them: numbers, ids and contents,
and for each node from where to where the place must be whole. Below that the numbers may have gone lawfully (a segment whose
records were confirmed, entries that every group had acknowledged), so that nothing can be said: that is told and is not fine.

A reader may know ids alone, or what else tells a record: a `Claim`, which gets its number from the places that have the record.
One that no place has is wrong, unless as many records have gone lawfully.

About 300 bytes of memory for each record. Left out: start and interim records, which have no number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cdr import codec
from cdr.reading import read_directory
from cdr.rows import call_key
from cdr.segment import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from cdr.facts import Record

__all__ = ["Claim", "Finding", "Held", "Holding", "Result", "read_journal", "resolve", "verify"]


class Held(NamedTuple):
    """One record as a place has it: its id, a digest of its content (empty where that is not known), its set-up (0 likewise),
    and where it stands in which file."""

    id: str
    digest: bytes
    at_ms: int
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.file else ""


class Claim(NamedTuple):
    """That a reader has a record, which it calls by its id, or by Call-ID and tags."""

    id: str
    call: tuple[str, str, str] | None
    file: str
    line: int

    @property
    def name(self) -> str:
        return self.id if self.call is None else f"with the Call-ID {self.call[0]}"


class Finding(NamedTuple):
    """What is wrong: `kind` is gap, double, conflict, stranger (no record is called so) or damage. `first` to `last` are the
    numbers, both included, 0 where none is known; `after_ms` and `before_ms` are the set-up stamps of the records around them,
    None where there is none. `file` and `line` say where a reader has it."""

    kind: str
    where: str
    node: str
    first: int
    last: int
    detail: str
    after_ms: int | None = None
    before_ms: int | None = None
    file: str = ""
    line: int = 0


@dataclass(slots=True)
class Holding:
    """What one place has. `floor` is the number up to which it need not have a record, `top` that up to which it must.
    What is `gone` was taken out by a purge: it was there.

    A `reader` has to have everything above what was proven before. A journal speaks for the nodes alone that are in `top`.
    """

    name: str
    reader: bool = False
    nodes: dict[str, dict[int, Held]] = field(default_factory=dict)
    floor: dict[str, int] = field(default_factory=dict)
    top: dict[str, int] = field(default_factory=dict)
    gone: dict[str, set[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    calls: dict[tuple[str, str, str], set[tuple[str, int]]] | None = None  # numbers by Call-ID and tags, where asked for

    def add(self, record: Record, file: str = "", line: int = 0) -> None:
        """Take a record in. Other types than final ones are left out."""
        if record.type != "final":
            return
        digest = hashlib.blake2b(codec.encode(msgspec.structs.replace(record, unknown={})), digest_size=12).digest()
        self.put(record.node, record.seq, Held(record.id, digest, record.setup_at_ms, file, line))
        if self.calls is not None:
            self.calls.setdefault(call_key(record), set()).add((record.node, record.seq))

    def put(self, node: str, seq: int, held: Held) -> None:
        """Take in what is known of a record; a number that is there already is a finding."""
        known = self.nodes.setdefault(node, {})
        before = known.setdefault(seq, held)
        self.top[node] = max(self.top.get(node, 0), seq)
        if before is not held:
            kind, detail = ("double", f"record {held.id}")
            if fault := _difference(before, held):
                kind, detail = "conflict", fault
            elif not before.digest:
                known[seq] = held  # the one whose content can be compared
            detail += f", also at {before.place}" if before.file else ""
            self.findings.append(Finding(kind, self.name, node, seq, seq, detail, file=held.file, line=held.line))

    def lowest(self) -> None:
        """Where nothing else is known, a place must be whole from its lowest record on."""
        for node, known in self.nodes.items():
            self.floor.setdefault(node, min(known) - 1 if known else 0)


@dataclass(slots=True)
class Result:
    """`unknown` has for each node the number below which nothing can be said, `proven` that up to which every place is right,
    `behind` what a place has not got yet."""

    findings: list[Finding]
    unknown: dict[str, int]
    proven: dict[str, int]
    behind: list[tuple[str, str, int]]  # place, node, how many records
    gone: list[Claim] = field(default_factory=list)  # of a reader, without a record: as many or more have gone lawfully

    @property
    def status(self) -> int:
        """0 fine, 1 something is wrong, 2 it cannot be told."""
        return 1 if self.findings else 2 if self.unknown or not self.proven else 0


def resolve(reader: Holding, claims: Iterable[Claim], places: Sequence[Holding]) -> list[Claim]:
    """Give a reader's claims the numbers that the places know; those that none knows."""
    ids = {held.id: (node, seq) for one in places for node, known in one.nodes.items() for seq, held in known.items()}
    stamps = {key: _stamp(places, *key) for key in ids.values()}
    calls: dict[tuple[str, str, str], set[tuple[str, int]]] = {}
    for place in places:
        for call, found in (place.calls or {}).items():
            calls.setdefault(call, set()).update(found)
    names = {key: name for name, key in ids.items()}
    taken: Counter[tuple[str, str, str]] = Counter()
    strangers: dict[str, Claim] = {}
    for claim in claims:
        if claim.call is None:
            key = ids.get(claim.id)
        else:
            keys = sorted(calls.get(claim.call, ()))
            key = keys[min(taken[claim.call], len(keys) - 1)] if keys else None
            taken[claim.call] += 1
        if key is not None:
            reader.put(*key, Held(names[key], b"", stamps[key], claim.file, claim.line))
            continue
        other = strangers.setdefault(f"{claim.id}/{claim.call}", claim)
        if other is not claim:
            detail = f"record {claim.name}, also at {other.file}:{other.line}"
            reader.findings.append(Finding("double", reader.name, "", 0, 0, detail, file=claim.file, line=claim.line))
    return list(strangers.values())


def _stamp(places: Sequence[Holding], node: str, seq: int) -> int:
    return next((held.at_ms for one in places if (held := one.nodes.get(node, {}).get(seq)) is not None and held.at_ms), 0)


def verify(
    holdings: Sequence[Holding], since: Mapping[str, int], strangers: Mapping[str, Sequence[Claim]] | None = None
) -> Result:
    """Compare the places with their own numbering and with each other. `since` has for each node the number that was proven
    before, `strangers` the claims of readers that `resolve` found nothing for."""
    findings = [finding for holding in holdings for finding in holding.findings]
    nodes = sorted({node for holding in holdings for node in (*holding.nodes, *holding.top)})
    result = Result(findings, {}, {}, [])
    for node in nodes:
        about = [holding for holding in holdings if holding.name != "journal" or node in holding.top]
        floors = [holding.floor.get(node, 0) for holding in about]
        floor = max([min(floors), *(holding.floor.get(node, 0) for holding in about if holding.reader)])
        if floor > since.get(node, 0):
            result.unknown[node] = floor + 1
        for holding in about:
            findings += _gaps(holding, node, about)
        findings += _conflicts(about, node)
        tops = [holding.top.get(node, 0) for holding in about]
        missing = zip(about, tops, strict=True)
        result.behind += [(holding.name, node, max(tops) - top) for holding, top in missing if top < max(tops)]
        result.proven[node] = min(tops)
    findings += _double_ids(holdings)
    for reader, claims in (strangers or {}).items():
        result.gone += _strangers(result, reader, claims, holdings)
    for finding in findings:
        if 0 < finding.first <= result.proven.get(finding.node, 0):
            result.proven[finding.node] = finding.first - 1
    return result


def _strangers(result: Result, reader: str, claims: Sequence[Claim], holdings: Sequence[Holding]) -> Sequence[Claim]:
    """Of claims without a record those that may be about what has gone lawfully; more than that cannot be, and all are told."""
    room = 0
    for node in {node for holding in holdings for node in (*holding.nodes, *holding.top)}:
        top = max(holding.top.get(node, 0) for holding in holdings)
        room += top - len({seq for one in holdings for seq in one.nodes.get(node, {}) if 0 < seq <= top})
    if len(claims) <= room:
        return claims
    some = f", and no more than {room} can have gone from all places" if room else ""
    for one in claims:
        result.findings.append(
            Finding("stranger", reader, "", 0, 0, f"there is no record {one.name}{some}", file=one.file, line=one.line)
        )
    return ()


def read_journal(directory: Path, *, with_calls: bool = False) -> Holding:
    """What a node's journal holds, read beside the running node: nothing is locked, cut or changed. Raises OSError.

    The header of the oldest segment knows the highest number given before it: what was below went with older segments.
    """
    holding = Holding("journal", calls={} if with_calls else None)
    for name, header, items in read_directory(directory):
        if header is None:
            holding.findings.append(Finding("damage", "journal", "", 0, 0, f"{name}: no readable header"))
            continue
        holding.floor.setdefault(header.node, header.last_seq)
        holding.top[header.node] = max(holding.top.get(header.node, 0), header.last_seq)
        for item in items:
            if isinstance(item, Frame):
                _take(holding, item.payload)
            else:
                detail = f"{name}: {item.end - item.offset} bytes at {item.offset}: {item.reason}"
                holding.findings.append(Finding("damage", "journal", header.node, 0, 0, detail))
    return holding


def _take(holding: Holding, payload: bytes) -> None:
    try:
        entry = codec.scan(payload)
        if entry.kind == "end":
            holding.add(codec.decode(entry.record))
    except codec.CodecError as error:
        holding.findings.append(Finding("damage", "journal", "", 0, 0, str(error)))


def _gaps(holding: Holding, node: str, holdings: Sequence[Holding]) -> Iterable[Finding]:
    """Runs of numbers above its floor and up to its top that the place does not have."""
    known, floor = holding.nodes.get(node, {}), holding.floor.get(node, 0)
    numbers = [seq for seq in sorted(known.keys() | holding.gone.get(node, set())) if seq > floor]
    ends = [*numbers, holding.top.get(node, 0) + 1]
    last = floor
    for seq in ends:
        if seq > last + 1:
            first, until = last + 1, seq - 1
            others = [
                other.name
                for other in holdings
                if other is not holding
                and any(n in other.nodes.get(node, {}) for n in range(first, min(until, first + 999) + 1))
            ]
            detail = f"in {' and '.join(others)}" if others else "nowhere"
            after, before = known.get(last), known.get(seq)
            stamps = (after.at_ms or None if after else None, before.at_ms or None if before else None)
            yield Finding("gap", holding.name, node, first, until, detail, *stamps)
        last = max(last, seq)


def _conflicts(holdings: Sequence[Holding], node: str) -> Iterable[Finding]:
    """Numbers that two places have with different ids or contents."""
    for index, one in enumerate(holdings):
        for other in holdings[index + 1 :]:
            mine, theirs = one.nodes.get(node, {}), other.nodes.get(node, {})
            for seq in sorted(mine.keys() & theirs.keys()):
                a, b = mine[seq], theirs[seq]
                if detail := _difference(a, b):
                    where = a if a.file else b
                    between = f"{one.name} and {other.name}"
                    yield Finding("conflict", between, node, seq, seq, detail, file=where.file, line=where.line)


def _difference(a: Held, b: Held) -> str:
    """How two that have one number differ, "" where they do not, as far as both contents are known."""
    if a.id != b.id:
        return f"{a.id} and {b.id}"
    return f"record {a.id} differs" if a.digest and b.digest and a.digest != b.digest else ""


def _double_ids(holdings: Sequence[Holding]) -> Iterable[Finding]:
    """An id under two numbers."""
    for holding in holdings:
        seen: dict[str, tuple[str, int]] = {}
        for node, known in holding.nodes.items():
            for seq, held in known.items():
                other = seen.setdefault(held.id, (node, seq))
                if other != (node, seq):
                    detail = f"record {held.id} is number {other[1]} too"
                    yield Finding("double", holding.name, node, seq, seq, detail, file=held.file, line=held.line)
