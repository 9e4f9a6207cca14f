"""An operator follows a line on a running node: its messages, what was decided, a packet file; and the collector's copies."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.node import LineSpec
from tests.programs import run

if TYPE_CHECKING:
    from pathlib import Path

LINES = [
    LineSpec("B2001", "b2001", "secret-b", "+49603255501"),
    LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert"),
]
BOUND_S = 30.0


class Follower:
    """`sipproxy trace follow --json` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def until(self, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(BOUND_S):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if found(self.events[-1]):
                    return self.events[-1]
        raise AssertionError(f"ended with {self.events[-3:]}")


async def started(config: Path, target: str, *options: str) -> Follower:
    words = ("trace", "follow", target, "--why", "one-way audio", "--json", "-c", str(config), *options)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sipproxy", *words, stdout=asyncio.subprocess.PIPE)
    return Follower(process)


async def test_line_is_followed_with_its_decisions_and_no_other_line_is(
    start_network: Callable[..., Any], tmp_path: Path
) -> None:
    collector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    collector.bind(("127.0.0.1", 0))
    collector.setblocking(False)
    network = await start_network(LINES, settings={"hep": {"address": f"127.0.0.1:{collector.getsockname()[1]}"}})
    one, other = await network.router("v1001"), await network.router("b2001")
    file = tmp_path / "line.pcap"
    follower = await started(network.node.config, "V1001", "-o", str(file), "--minutes", "1")
    assert (await follower.until(lambda _: True))["kind"] == "begins"
    await (await other.call("03023125001")).answered()
    assert await (await one.call("09001234567")).final() == 403
    call = await (await one.call("03023125001")).answered()
    await call.hang_up()
    ended = await follower.until(lambda event: event["kind"] == "ended" and event.get("status") == 200)
    assert (ended["reason"], ended["released_by"], ended["call_id"]) == ("normal", "caller", call.call_id)
    messages = [event for event in follower.events if event["kind"] == "message"]
    mine = [event["data"].partition("\r\n")[0] for event in messages if event["call_id"] == call.call_id]
    assert mine.count("BYE sip:+493023125001@") == 0  # the whole first line is there
    assert [line.split(" ")[0] for line in mine].count("BYE") == 2  # in from the router, out to the carrier
    assert {event["direction"] for event in messages} == {"in", "out"}
    refused = next(event for event in follower.events if event["kind"] == "ended" and event["verdict"] == "deny")
    assert refused["rule"] == "block.class.premium"
    everything = json.dumps(follower.events)
    assert "b2001" not in everything
    assert "Digest" in everything
    assert not [e for e in messages if 'response="' in e["data"] and 'response="0' not in e["data"]]
    follower.process.terminate()
    await follower.process.wait()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size > 24 + sum(len(event["data"]) for event in messages[:3])
    await until_logged(network, "watch_ends")
    assert "one-way audio" in network.node.log()
    copies = []
    while True:
        try:
            copies.append(collector.recv(65535))
        except BlockingIOError:
            break
    collector.close()
    assert all(copy.startswith(b"HEP3") for copy in copies)
    assert sum(call.call_id.encode() in copy and b"BYE sip:" in copy for copy in copies) == 2


async def until_logged(network: Any, event: str) -> None:
    async with asyncio.timeout(BOUND_S):
        while event not in network.node.log():  # noqa: ASYNC110  a log file has no event
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("V1001", ("--why", " "), "--why is needed"),
        ("V9", (), "no line, assigned number or live call"),
        ("V1001", ("-o", "/"), "/"),
    ],
)
async def test_following_that_cannot_be_is_refused_with_its_reason(
    start_network: Callable[..., Any], target: str, options: tuple[str, ...], words: str
) -> None:
    network = await start_network(LINES)
    command = [
        sys.executable,
        "-m",
        "sipproxy",
        "trace",
        "follow",
        target,
        "--why",
        "x",
        "-c",
        str(network.node.config),
        *options,
    ]
    status, _, errors = await run(*command)
    assert status in (1, 2)
    assert words in errors.decode()
    assert "Traceback" not in errors.decode()
