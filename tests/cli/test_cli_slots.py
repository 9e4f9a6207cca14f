"""`line show` and `calls --all`: who holds which slots, with and without the store and the node."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
from answering import answering
from program import run

from loadtest.valkey import Valkey
from policy import store as policy_store
from policy.windows import ZONE
from sipproxy import policy_cache
from sipproxy.engine.actions import Holder
from sipproxy.store import keys
from sipproxy.store.live_slots import write_holder
from sipproxy.store.slots import _SCRIPT

ROOT = Path(__file__).resolve().parent.parent.parent
SINCE_MS = 1_790_000_000_000
HERE = {
    "id": "c1", "node": "n1", "state": "answered", "direction": "outgoing", "line": "V1001", "account": "v1001-1",
    "calling": "+492051555101", "dialled": "+493012345", "trunk": "a", "setup_at_ms": SINCE_MS,
    "slots": [{"kind": "line", "of": "V1001", "account": "v1001-1", "role": "", "since_ms": SINCE_MS}],
}  # fmt: skip


def sipproxy(config: Path, *words: str, code: int = 0) -> str:
    """All that a command writes."""
    done = run(*words, "-c", config, code=code)
    return done.stdout + done.stderr


def answer(config: Path, *words: str) -> Any:
    return json.loads(run(*words, "-c", config, "--json").stdout)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A configuration whose store has two lines; this line's slots are held by calls of two nodes."""
    with asyncio.Runner() as runner:
        valkey = Valkey()
        runner.run(valkey.__aenter__())
        config = tmp_path / "config.toml"
        config.write_text(f'[store]\nurl = "{valkey.url}"\n[node]\ndata_dir = "data"\n[policy]\n')
        (tmp_path / "data").mkdir()
        sipproxy(config, "psap", "import", str(ROOT / "examples/psap.csv"))
        sipproxy(config, "line", "import", str(ROOT / "examples/lines.csv"))
        client = redis.Redis.from_url(valkey.url)
        for member, holder in (
            ("c1", Holder("n1", SINCE_MS, "v1001-1", "outgoing")),
            ("c2", Holder("n2", SINCE_MS + 5000, "v1001-2", "incoming")),
        ):
            names = keys.slots("V1001"), keys.holders("V1001")
            client.eval(_SCRIPT, 2, *names, member, 9, 600_000, write_holder(holder), "")  # type: ignore[no-untyped-call]
        client.zadd(keys.slots("V1001"), {"lapsed": 1.0})
        client.zadd(keys.slots("V1001"), {"c2": time.time() * 1000 + 80_000})  # of the 90 s that its node last took it for
        client.hset(keys.node("n1"), "beat", 1)  # the sign of life of one of the two
        client.close()
        yield config
        runner.run(valkey.__aexit__())


def running(config: Path, routes: list[dict[str, Any]] | None = None) -> AbstractContextManager[None]:
    """A node on this machine, as far as the control socket goes."""
    return answering(config.parent / "data", {"calls": lambda _: {"calls": [HERE]}, "trunks": lambda _: {"trunks": routes}})


def lose_store(config: Path) -> None:
    """The node saw the policy data; then the store went away."""
    url = config.read_text().split('"')[1]
    snapshot = asyncio.run(loaded(url))
    policy_cache.save(config.parent / "data" / "policy.snapshot", snapshot)
    config.write_text(config.read_text().replace(url, "redis://127.0.0.1:1"))


async def loaded(url: str) -> Any:
    async with redis.asyncio.Redis.from_url(url) as client:
        return await policy_store.load(client)


def test_line_show_lists_the_slots_of_all_nodes_and_what_this_one_knows(config: Path) -> None:
    with running(config):
        shown = answer(config, "line", "show", "V1001")
        table = sipproxy(config, "line", "show", "V1001")
    assert shown["store"] == ""
    first, second = shown["slots"]
    assert (first["call"], first["node"], first["account"], first["direction"]) == ("c1", "n1", "v1001-1", "outgoing")
    assert (first["since_ms"], first["other"], first["state"]) == (SINCE_MS, "+493012345", "answered")
    assert 0 < first["lease_ms"] <= 600_000
    assert (second["call"], second["node"], second["other"]) == ("c2", "n2", "")
    assert first["silent_since_ms"] is None
    silent_s = time.time() - second["silent_since_ms"] / 1000
    assert 10.0 <= silent_s < 90.0, "since its node took the lease"
    assert re.search(r"^c2 +n2 \(silent since [0-9: -]+\) ", table, re.MULTILINE)
    assert re.search(r"^c1 +n1 +", table, re.MULTILINE)
    assert "lapsed" not in table
    assert dt.datetime.fromtimestamp(SINCE_MS / 1000, ZONE).strftime("%Y-%m-%d %H:%M:%S") in table


def test_line_show_without_the_store_says_so_and_shows_this_nodes_calls(config: Path) -> None:
    lose_store(config)
    with running(config):
        shown = answer(config, "line", "show", "V1001")
        words = sipproxy(config, "line", "show", "V1001")
    assert "no store answers" in shown["store"]
    assert [(slot["call"], slot["lease_ms"]) for slot in shown["slots"]] == [("c1", None)]
    assert "the calls are those of this node alone" in words
    assert "nothing is known of calls: no node answers" in sipproxy(config, "line", "show", "V1001")


def test_trunks_shows_the_calls_here_those_of_all_nodes_and_the_limit(config: Path) -> None:
    route = {
        "trunk": "carrier", "state": "up", "since_ms": SINCE_MS, "calls": 1, "limit": 7, "ping_ms": None, "last_failure": "",
        "last_failure_at_ms": None, "registration": "", "expires_at_ms": None, "addresses": [],
    }  # fmt: skip
    client = redis.Redis.from_url(config.read_text().split('"')[1])
    names = keys.slots("carrier", "trunk"), keys.holders("carrier", "trunk")
    for node in ("n1", "n2", "n3"):
        client.eval(_SCRIPT, 2, *names, node, 9, 600_000, write_holder(Holder(node, SINCE_MS)), "")  # type: ignore[no-untyped-call]
    client.zadd(names[0], {"lapsed": 1.0})
    client.close()
    with running(config, [route, {**route, "trunk": "open", "limit": None}]):
        shown = answer(config, "trunks")
        table = sipproxy(config, "trunks")
        lose_store(config)
        without = sipproxy(config, "trunks")
    assert [(row["calls"], row["calls_all_nodes"], row["limit"]) for row in shown] == [(1, 3, 7), (1, None, None)]
    assert re.search(r"^carrier +up +\S+ +\S+ +1 +3 +7", table, re.MULTILINE)
    assert re.search(r"^carrier +up +\S+ +\S+ +1 +7", without, re.MULTILINE)
    assert "the calls over all nodes are not known" in without


def test_calls_all_has_those_of_other_nodes_by_their_slots(config: Path) -> None:
    with running(config):
        shown = answer(config, "calls", "--all")
        table = sipproxy(config, "calls", "--all")
    assert [(call["id"], call["node"], call["line"], call.get("state")) for call in shown["calls"]] == [
        ("c1", "n1", "V1001", "answered"),
        ("c2", "n2", "V1001", None),
    ]
    assert shown["calls"][1]["slots"] == [{**HERE["slots"][0], "account": "v1001-2", "since_ms": SINCE_MS + 5000}]
    assert "c2" in table
    without = answer(config, "calls", "--all")
    assert [call["id"] for call in without["calls"]] == ["c1", "c2"]
    assert "no node answers" in without["node"]


def test_calls_all_without_the_store_shows_this_nodes_and_without_both_fails(config: Path) -> None:
    lose_store(config)
    with running(config):
        words = sipproxy(config, "calls", "--all")
        assert [call["id"] for call in answer(config, "calls", "--all")["calls"]] == ["c1"]
    assert "only the calls of this node are shown" in words
    assert "no store answers" in sipproxy(config, "calls", "--all", code=3)


def test_reading_hidden_numbers_without_a_reason_or_a_line_is_a_wrong_use_as_following_is(config: Path) -> None:
    """And an empty list is no fault."""
    sipproxy(config, "trace", "follow", "V1001", "--why", " ", code=2)
    for words in (("--why", "x"), ("--line", "V1001", "--why", " ")):
        sipproxy(config, "trace", "list", *words, code=2)
    assert "no calls were recorded" in sipproxy(config, "trace", "list", "--line", "V1001", "--why", "x")
