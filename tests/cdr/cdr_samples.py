"""Records and facts for the tests of this folder, and strategies that draw them."""

from __future__ import annotations

import typing

import msgspec
from hypothesis import strategies as st

from cdr.facts import Admit, Alive, Answer, Confirmed, End, EndReason, Fact, PartySide, Place, Record, ReleasedBy

SETUP_AT_MS = 1_790_000_000_000


def draft(call: str = "c1", **fields: object) -> Record:
    return msgspec.structs.replace(Record(id=call, node="n1", direction="outgoing", setup_at_ms=SETUP_AT_MS), **fields)


def ended(seq: int, call: str | None = None, **fields: object) -> End:
    return End(draft(call or f"call-{seq}", seq=seq, end_at_ms=SETUP_AT_MS + 1000, end_reason="normal", **fields))


def answer(call: str = "c1", *, at_ms: int = SETUP_AT_MS + 5000, after_ms: int = 5000, **fields: object) -> Answer:
    base = Answer(call, at_ms, after_ms, SETUP_AT_MS + 1000, 200, "tt", "trunk1", "", "", ["audio"])
    return msgspec.structs.replace(base, **fields)


INTEGERS = st.integers(min_value=-(2**63), max_value=2**64 - 1)
TEXTS = st.text(max_size=30)
TREES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = frozenset(Record.__struct_fields__) - {"unknown"}
UNKNOWN = st.dictionaries(TEXTS.filter(lambda name: name not in FIELDS), TREES, max_size=3)


PLACES = st.builds(Place, TEXTS, TEXTS, INTEGERS, INTEGERS)
SIDES = st.builds(PartySide, st.binary(max_size=30), INTEGERS)
SHIFTS = st.lists(st.tuples(INTEGERS, INTEGERS), max_size=2).map(tuple)
DIALOGS = st.builds(Confirmed, st.binary(), st.binary(), TEXTS, TEXTS, PLACES, SIDES, SIDES, st.booleans(), SHIFTS)


def _values(annotation: object) -> st.SearchStrategy[object]:
    if typing.get_origin(annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(annotation))
    return {
        str: TEXTS,
        int: INTEGERS,
        bool: st.booleans(),
        int | None: st.none() | INTEGERS,
        list[str]: st.lists(TEXTS, max_size=3),
        EndReason: st.sampled_from(typing.get_args(EndReason)),
        ReleasedBy: st.sampled_from(typing.get_args(ReleasedBy)),
        dict[str, object]: UNKNOWN,
        Place | None: st.none() | PLACES,
        tuple[Confirmed, ...]: st.lists(DIALOGS, max_size=2).map(tuple),
    }[annotation]


def records() -> st.SearchStrategy[Record]:
    hints = typing.get_type_hints(Record)
    return st.builds(Record, **{name: _values(hints[name]) for name in Record.__struct_fields__})


def facts() -> st.SearchStrategy[Fact]:
    parts = {
        kind: st.builds(kind, **{name: _values(hint) for name, hint in typing.get_type_hints(kind).items()})
        for kind in (Answer, Alive)
    }
    admits = st.builds(Admit, records(), TEXTS, INTEGERS, st.lists(TEXTS, max_size=2).map(tuple))
    return admits | st.builds(End, records()) | parts[Answer] | parts[Alive]
