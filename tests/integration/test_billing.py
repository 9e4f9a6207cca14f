"""What docs/billing.md shows, run as it stands there, against a real Valkey and a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from loadtest.billing import bill_through_trouble, consume_rate, make_record, put
from loadtest.postgres import Postgres, programs
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest_asyncio.fixture
async def valkey() -> AsyncIterator[Valkey]:
    async with Valkey() as store:
        yield store


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    try:
        programs()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with Postgres() as server:
        yield server


async def test_table_equals_the_truth_whatever_dies(valkey: Valkey, postgres: Postgres) -> None:
    report = await bill_through_trouble(valkey.client, valkey.url, postgres, records=3000, outage_s=2)
    assert (report.missing, report.unexpected, report.different) == ([], [], []), report.log
    assert report.rows == 3000
    assert report.kills == 6, "three consumers, each killed twice behind its insert"
    assert report.pending == 0
    assert report.statuses == [0, 0, 0], report.log
    reasons = sorted(letter.reason for letter in report.letters)
    assert len(reasons) == 2, reasons
    assert reasons[0].startswith("no record: ")
    assert reasons[1].startswith("refused: ")
    assert "NUL" in reasons[1]


async def test_plain_example_prints_every_record_once_and_tells_what_is_none(valkey: Valkey) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "docs/examples/plain.py"), valkey.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    client = valkey.client
    await put(client, [make_record(seq) for seq in range(1, 251)])
    await client.xadd("sp:cdr", {"id": "poison", "d": b"\xc1"})
    done = run()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(record["id"], record["billable_ms"]) for record in records] == [
        (make_record(seq).id, 60_000 + seq) for seq in range(1, 251)
    ]
    assert "is no record" in done.stderr
    await put(client, [make_record(251)])
    assert [json.loads(line)["seq"] for line in run().stdout.splitlines()] == [251]
    assert (await client.xpending("sp:cdr", "plain"))["pending"] == 1, "the poison, which nobody may forget"


async def test_consume_rate_is_measured(valkey: Valkey) -> None:
    rate = await consume_rate(valkey.client, records=1000)
    assert rate.records == 1000
    assert rate.per_second > 0
    assert rate.cpu_us > 0


def test_plain_example_uses_nothing_of_this_project() -> None:
    text = (ROOT / "docs/examples/plain.py").read_text()
    assert "cdr" not in [line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))]
