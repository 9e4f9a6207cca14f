"""How commands write counts."""

from __future__ import annotations

import pytest

from sipproxy.commands.output import many


@pytest.mark.parametrize(("count", "written"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_count_is_written_with_its_noun(count: int, written: str) -> None:
    assert many(count, "file") == written
