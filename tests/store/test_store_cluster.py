"""A server of a Redis Cluster, or a Sentinel, is told by name at the start and not at the first call (docs/operation.md, "Which
store"), and why it cannot be one: which keys lie apart there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_server import Connect, Server, eventually

from policy.store import LOG, TABLES
from sipproxy.store import keys
from sipproxy.store.connection import Bounds, State
from sipproxy.store.errors import UNUSABLE, unusable_mode

BOUND_S = 60.0


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """One server that has all 16384 hash slots."""
    server = Server("--cluster-enabled", "yes", "--bind", "127.0.0.1", "--cluster-port", free_port())
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    yield server
    server.remove()


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "sipproxy", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


@pytest.fixture
def config(cluster: Server, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    text = f'''[node]
data_dir = "data"
[[listen]]
address = "127.0.0.1:0"
[store]
url = "{cluster.url}"
[metrics]
address = ""
'''
    path.write_text(text)
    return path


@pytest.mark.parametrize("arguments", [("check",), ("line", "list"), ("serve",)], ids=" ".join)
def test_cluster_is_refused_in_one_clear_error(arguments: tuple[str, ...], config: Path) -> None:
    done = run(*arguments, "-c", config, cwd=config.parent)
    assert done.returncode == 1, done
    said = [line for line in done.stderr.splitlines() if "store.url" in line]
    assert len(said) == 1
    assert UNUSABLE["CLUSTER"] in said[0]
    assert "Traceback" not in done.stderr


def test_check_tells_a_cluster_to_programs_with_file_and_key(config: Path) -> None:
    done = run("check", "--json", "-c", config, cwd=config.parent)
    answer = json.loads(done.stdout or done.stderr)
    assert [(fault["file"], fault["key"]) for fault in answer["faults"]] == [(str(config), "store.url")]


def test_check_says_nothing_of_a_store_that_does_not_answer(config: Path) -> None:
    config.write_text(config.read_text().replace('/s"', '/nobody"'))
    assert run("check", "-c", config, cwd=config.parent).returncode == 0


async def test_cluster_that_a_node_meets_later_is_away_by_name(cluster: Server, server: Server, connect: Connect) -> None:
    """A node that runs goes on as without a store, and says why."""
    store = await connect(cluster.url, bounds=Bounds(backoff_first_ms=10, backoff_max_ms=20))
    await eventually(lambda: store.reason == "CLUSTER")
    assert store.state is State.AWAY
    good = await connect(server.url)
    assert good.state is State.UP


@pytest.mark.parametrize(
    ("info", "mode"),
    [
        (b"# Server\r\nredis_version:7.2.4\r\nredis_mode:cluster\r\n", "CLUSTER"),
        (b"server_name:valkey\r\nserver_mode:cluster\r\n", "CLUSTER"),
        (b"redis_mode:sentinel\r\n", "SENTINEL"),
        (b"redis_mode:standalone\r\nrun_id:cluster\r\n", ""),
        (b"", ""),
    ],
)
def test_mode_of_a_server_is_read_from_what_it_says(info: bytes, mode: str) -> None:
    assert unusable_mode(info) == mode


def test_what_lies_together_and_what_does_not(cluster: Server) -> None:
    """The keys of a line, a route and of CDRs do, so that their scripts would run; an account's bindings and their log do not,
    nor do the tables of policy data and theirs, each of which is written in one step with its log."""

    def together(*names: bytes | str) -> bool:
        return len({cluster.ask("CLUSTER", "KEYSLOT", name) for name in names}) == 1

    assert together(keys.slots("L1"), keys.holders("L1"))
    assert together(keys.slots("carrier", "trunk"), keys.holders("carrier", "trunk"))
    assert together("sp:cdr", "{sp:cdr}:stats:days", "{sp:cdr}:held", "{sp:cdr}:access")
    assert not together(keys.bindings("alice"), keys.BINDINGS_LOG)
    assert not together(*TABLES.values(), LOG)
