"""What a row of `sipproxy cdr tail` says."""

from __future__ import annotations

import pytest

from cdr.facts import Record
from sipproxy.commands.cdrs import COLUMNS, _cells


@pytest.mark.parametrize(("kind", "said"), [("start", "(start)"), ("interim", "(interim)"), ("final", "normal")])
def test_tail_record_of_a_live_call_is_not_shown_as_an_ended_one(kind: str, said: str) -> None:
    record = Record(id="r", node="n1", direction="outgoing", seq=1, type=kind, setup_at_ms=1, end_reason="normal")  # type: ignore[arg-type]
    assert _cells(record)[COLUMNS.index("end")] == said
