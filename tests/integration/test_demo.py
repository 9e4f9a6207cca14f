"""The demonstration ends by itself, with status 0 where everything happened as announced."""

from __future__ import annotations

import json
import sys

from tests.programs import run


async def test_demo_ends_with_status_0_and_tells_every_step() -> None:
    status, output, errors = await run(sys.executable, "-m", "loadtest.demo", "--json")
    assert status == 0, f"{output.decode()}\n{errors.decode()}"
    told = json.loads(output)
    assert told["ok"]
    assert all(step["ok"] for step in told["steps"])
    outcomes = [(r["direction"], r["canonical"], r["status"]) for r in told["records"]]
    assert sorted(outcomes) == sorted(
        [
            ("outgoing", "+493023125001", 200),
            ("outgoing", "+496990009002", 200),
            ("outgoing", "+498999998003", 403),
            ("outgoing", "+499001234567", 403),
            ("outgoing", "service:112", 200),
            ("incoming", "+492051555101", 200),
        ]
    )
