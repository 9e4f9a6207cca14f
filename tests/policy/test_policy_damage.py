"""Broken policy files: each is refused with its name, the place and a reason, and nothing of it is applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from policy_damage import GOOD, Damaged, damaged_files, toml_of

from policy import store
from policy.table import PolicyError
from sipproxy.policy_files import Files, read_change

if TYPE_CHECKING:
    import redis.asyncio

    from policy.change import Change

CASES = damaged_files()


def read(kind: str, path: Path) -> Change:
    return read_change(Files(**{kind: (str(path),)}), realm="sip.example")


@pytest.mark.parametrize("kind", GOOD)
def test_the_good_files_are_good_in_both_forms(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(GOOD[kind])
    (tmp_path / "x.toml").write_text("\n".join(toml_of(kind)))
    assert read(kind, tmp_path / "x.csv") == read(kind, tmp_path / "x.toml")


def test_there_are_more_than_two_hundred_broken_files() -> None:
    assert len({(case.kind, case.form, case.content) for case in CASES}) == len(CASES) > 200
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_file_is_refused_with_file_place_and_reason(case: Damaged, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{case.form}"
    path.write_bytes(case.content)
    with pytest.raises(PolicyError) as raised:
        read(case.kind, path)
    faults = raised.value.faults
    assert all(fault.file == str(path) and fault.reason for fault in faults), faults
    places = {(fault.row, fault.column) for fault in faults}
    assert (case.row, case.column) in places or (not case.column and case.row in {row for row, _ in places}), faults
    assert "secret-" not in str(raised.value)


async def test_nothing_of_any_broken_file_is_applied(client: redis.asyncio.Redis, tmp_path: Path) -> None:
    for kind in ("psap", "lines", "blocks"):
        (tmp_path / f"{kind}.csv").write_text(GOOD[kind])
        await store.apply(client, read(kind, tmp_path / f"{kind}.csv"), who="tests", why="good")
    before = await store.load(client)
    raw = {name: await client.hgetall(key) for name, key in store.TABLES.items()}
    for case in CASES:
        path = tmp_path / f"broken.{case.form}"
        path.write_bytes(case.content)
        with pytest.raises(PolicyError):
            await store.submit(client, read(case.kind, path), who="tests", why=case.name)
    assert await store.load(client) == before
    assert {name: await client.hgetall(key) for name, key in store.TABLES.items()} == raw
    assert [entry.version for entry in await store.log_of(client)] == [1, 2, 3]
