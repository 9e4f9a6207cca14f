"""`sipproxy cdr pull`, `ack`, `groups` and `dead` as they are called: nothing is lost with the output."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from program import Done, run_in_thread

from cdr import export
from cdr.consumer import Consumer
from cdr.lease import LEASE_S
from loadtest.billing import make_record, put
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[2]


LEASE = "{sp:cdr}:pull:pull"
# The command in a process that is killed at a step.
DYING = """
import os, signal, sys
from cdr import steps
from sipproxy.cli import app
fatal = sys.argv.pop(1)
steps.hook = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == fatal else None
app()
"""


class Place:
    """A store with records, and the commands on it."""

    def __init__(self, store: Valkey, folder: Path) -> None:
        self.store = store
        self.config = folder / "config.toml"
        self.config.write_text(f'[store]\nurl = "{store.url}"\n')

    def run(self, *words: str, code: int = 0) -> Done:
        return run_in_thread("cdr", *words, "-c", self.config, code=code)

    def answer(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    def seqs(self, *words: str) -> list[int]:
        return [json.loads(line)["seq"] for line in self.run("pull", *words).stdout.splitlines()]

    def start(self, *words: str, dies_at: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """As a process, where what is written to, or the end of the process, is what is tested."""
        program = ("-c", DYING, dies_at) if dies_at else ("-m", "sipproxy")
        command = [sys.executable, *program, "cdr", *words, "-c", str(self.config)]
        return subprocess.Popen(command, cwd=ROOT, **{"stderr": subprocess.PIPE, **options})

    def refused(self, *words: str, **options: Any) -> bytes:
        """What a process that ends with 1 says."""
        with self.start(*words, **options) as process:
            errors = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        return errors


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with Valkey() as store:
        yield Place(store, tmp_path)


async def records(place: Place, first: int, last: int, **fields: Any) -> None:
    await put(place.store.client, [make_record(seq, **fields) for seq in range(first, last + 1)])


async def test_pull_goes_on_where_the_group_left_off(place: Place) -> None:
    await records(place, 1, 450)
    assert place.seqs("--peek", "--limit", "3") == [1, 2, 3]
    assert await place.store.client.xinfo_groups("sp:cdr") == [], "a look leaves nothing behind"
    assert place.seqs("--limit", "250") == list(range(1, 251))
    assert place.seqs("--peek", "--limit", "2") == [251, 252]
    assert place.seqs() == list(range(251, 451))
    assert place.seqs() == []
    assert place.seqs("--group", "other") == list(range(1, 451))
    await put(place.store.client, [msgspec.structs.replace(make_record(9), type="interim", seq=0)])
    assert place.seqs() == []
    assert place.seqs("--group", "other", "--live") == [0]


async def test_pull_kept_comes_again_until_it_is_acknowledged(place: Place) -> None:
    await records(place, 1, 3)
    for _ in range(5):
        assert sorted(place.seqs("--keep")) == [1, 2, 3]
    await records(place, 4, 4)
    accesses = place.answer("access")
    assert sorted(row["records"] for row in accesses) == [3] * 5, "who looks at records is written down"
    assert {row["command"] for row in accesses} == {"cdr pull"}
    assert place.answer("ack") == {"group": "pull", "acknowledged": 3}
    assert "no group 'pul'" in place.run("ack", "--group", "pul", code=1).stderr
    assert [row["group"] for row in place.answer("groups")] == ["pull"], "a group that nobody reads holds up the stream"
    assert place.seqs() == [4]


async def test_pull_into_a_pipe_that_breaks_loses_nothing(place: Place) -> None:
    await records(place, 1, 1000)
    with place.start("pull", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
    assert json.loads(first)["seq"] == 1
    assert sorted(place.seqs()) == list(range(1, 1001))


async def test_pull_with_a_full_disk_loses_nothing(place: Place) -> None:
    await records(place, 1, 300)
    full = os.open("/dev/full", os.O_WRONLY)
    assert b"No space left on device; what was not written comes again" in place.refused("pull", stdout=full)
    os.close(full)
    file = place.config.with_name("out.jsonl")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    told = place.refused("pull", "-o", str(file), preexec_fn=limit)
    assert b"File too large; nothing was acknowledged" in told
    assert (file.exists(), list(file.parent.glob(".out*"))) == (False, [])
    file.write_bytes(b"before\n")
    out = os.open(file, os.O_WRONLY | os.O_APPEND)
    place.refused("pull", stdout=out, preexec_fn=limit)
    os.close(out)
    assert file.read_bytes() == b"before\n", "no half a line"
    file.unlink()
    place.run("pull", "-o", str(file))
    assert sorted(json.loads(line)["seq"] for line in file.read_bytes().splitlines()) == list(range(1, 301))
    assert file.stat().st_mode & 0o077 == 0
    assert "is there already" in place.run("pull", "-o", str(file), code=2).stderr, "a file is never written over"
    assert place.seqs() == []


async def test_pull_beside_another_of_the_group_is_told_who_has_it(place: Place) -> None:
    await records(place, 1, 3)
    with place.start("pull", "--follow", stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        seen = [json.loads(first.stdout.readline())["seq"] for _ in range(3)]
        refused = [
            place.run(*words, code=1) for words in (("pull",), ("ack",), ("pull", "-o", str(place.config.with_name("f"))))
        ]
        who = f"group pull is being pulled by `cdr pull` of {pwd.getpwuid(os.getuid()).pw_name} on {socket.gethostname()}"
        for done in refused:
            assert done.stdout == ""
            assert f"{who}, process {first.pid}, since 20" in done.stderr
        assert not place.config.with_name("f").exists()
        assert place.seqs("--peek") == []
        assert place.seqs("--group", "other") == [1, 2, 3], "each group has a lease of its own"
        assert 0 < await place.store.client.pttl(LEASE) <= 1000 * LEASE_S
        first.send_signal(signal.SIGINT)
        rest = first.stdout.read()
        assert first.wait(60) == 130
    assert (seen, rest) == ([1, 2, 3], b"")
    await records(place, 4, 4)
    assert place.seqs() == [4]
    assert set(await place.store.client.hkeys("{sp:cdr}:pulls")) == {b"pull", b"other"}


@pytest.mark.parametrize("to_file", [False, True])
async def test_pull_killed_between_writing_and_acknowledging_gives_the_same_again(place: Place, to_file: bool) -> None:
    await records(place, 1, 450)
    files = [place.config.with_name(name) for name in ("first", "second")]
    if to_file:
        words, step, out = ("pull", "-o", str(files[0])), "pull.named", subprocess.DEVNULL
    else:
        words, step, out = ("pull",), "pull.written", os.open(files[0], os.O_WRONLY | os.O_CREAT)
    with place.start(*words, dies_at=step, stdout=out) as dying:
        assert dying.wait(60) == -signal.SIGKILL
    assert await place.store.client.hgetall("{sp:cdr}:pulls") == {}, "it did not come to its end"
    told = place.run("pull", "-o", str(files[1]), code=1).stderr
    assert f"process {dying.pid}, since" in told
    assert not files[1].exists()
    assert 0 < await place.store.client.pttl(LEASE) <= 1000 * LEASE_S, "it ends by itself"
    await place.store.client.delete(LEASE)  # as it does in time
    place.run("pull", "-o", str(files[1]))
    first, second = ([json.loads(line)["seq"] for line in file.read_bytes().splitlines()] for file in files)
    assert sorted(second) == list(range(1, 451)), "nothing was acknowledged"
    assert sorted(first) == list(range(1, (451 if to_file else 201)))
    assert place.seqs() == []


async def test_pull_that_stood_still_ends_when_another_has_taken_its_place(place: Place) -> None:
    await records(place, 1, 1)
    with place.start("pull", "--follow", stdout=subprocess.PIPE, start_new_session=True) as first:
        assert first.stdout is not None
        assert json.loads(first.stdout.readline())["seq"] == 1
        async with asyncio.timeout(60):
            while (await place.store.client.xpending("sp:cdr", "pull"))["pending"]:  # noqa: ASYNC110  another process's doing
                await asyncio.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        try:
            await place.store.client.delete(LEASE)  # as its time is over
            with place.start("pull", "--follow", stdout=subprocess.PIPE) as second:
                assert second.stdout is not None
                await records(place, 2, 2)
                got = json.loads(second.stdout.readline())["seq"]
                first.send_signal(signal.SIGCONT)
                _, told = first.communicate(timeout=60)
                assert first.returncode == 1
                assert f"process {second.pid}, since".encode() in told
                assert (await place.store.client.get(LEASE)) is not None, "it is the other's"
                second.send_signal(signal.SIGINT)
                second.communicate(timeout=60)
        finally:
            first.kill()
    assert got == 2
    assert place.seqs() == []


async def test_pull_into_a_file_that_another_group_writes_is_refused(place: Place) -> None:
    await records(place, 1, 1)
    file = place.config.with_name("day")
    other = os.open(place.config.with_name(".day.part"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "another pull writes it; nothing was acknowledged" in place.run("pull", "-o", str(file), code=1).stderr
    assert not file.exists()
    os.write(other, b"left over by a pull that was killed")
    os.close(other)
    place.run("pull", "-o", str(file))
    assert json.loads(file.read_bytes())["seq"] == 1


async def test_pull_neutralises_texts_and_leaves_messagepack_intact(place: Place) -> None:
    await records(place, 1, 1, user_agent="=cmd|'/c calc'!A0\r\nx", presented="\x1b]0;x\x07")
    text = place.run("pull", "--format", "csv", "--peek").stdout
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["user_agent"].startswith("'=")
    assert not set(text) & {"\x1b", "\x07"}
    line = place.run("pull", "--peek").stdout
    assert json.loads(line)["user_agent"].startswith("'=")
    packed = place.run("pull", "--format", "msgpack").output
    assert [*export.read([packed], "msgpack")] == [
        make_record(1, user_agent="=cmd|'/c calc'!A0\r\nx", presented="\x1b]0;x\x07")
    ]
    assert msgspec.msgpack.decode(packed)["user_agent"] == "=cmd|'/c calc'!A0\r\nx"


async def test_group_that_nobody_reads_as_is_removed_with_a_reason_and_no_other(place: Place) -> None:
    await records(place, 1, 2)
    with place.config.open("a") as file:
        file.write("[cdr]\nsinks = ['pull']\n")
    for group in ("pull", "pul", "kept"):
        assert place.seqs("--group", group, *(["--keep"] if group == "kept" else [])) == [1, 2]
    place.run("groups", "--remove", "pul", code=2)  # without a reason
    why = ("--why", "misspelt")
    assert "no group 'nobody'" in place.run("groups", "--remove", "nobody", *why, code=1).stderr
    assert "cdr.sinks" in place.run("groups", "--remove", "pull", *why, code=1).stderr
    assert "reads as 'kept'" in place.run("groups", "--remove", "kept", *why, code=1).stderr
    assert place.answer("groups", "--remove", "pul", *why) == {"removed": "pul", "pending": 0, "why": "misspelt"}
    assert [row["group"] for row in place.answer("groups")] == ["kept", "pull"]
    (noted,) = [row for row in place.answer("access") if row["command"] == "cdr groups"]
    assert noted["filter"] == "remove pul: misspelt"


async def test_groups_and_dead_letters_are_shown_requeued_and_dropped(place: Place) -> None:
    client = place.store.client
    assert place.run("groups").stdout == "nobody reads the records yet\n"
    assert place.run("dead", "list").stdout == "no dead letters\n"
    await records(place, 1, 1)
    await client.xadd("sp:cdr", {"id": "x", "d": b"\xc1"})
    async with Consumer(client, group="billing") as consumer:
        async for batch in consumer.batches(follow=False):
            await consumer.reject(batch[0], "no such line")
    (group,) = place.answer("groups")
    assert (group["group"], group["unread"], group["pending"], group["consumers"]) == ("billing", 0, 0, [])
    first, second = place.answer("dead", "list")
    assert (first["reason"][:9], second["reason"], second["record"]) == ("no record", "no such line", make_record(1).id)
    assert place.answer("dead", "show", second["letter"])["content"]["billable_ms"] == 60_001
    assert place.answer("dead", "show", first["letter"])["fields"] == {"id": "x", "d": "c1"}
    for name in ("1-1", "x", "1", "\u0661-1"):
        assert "there is no dead letter" in place.run("dead", "show", name, code=1).stderr
        assert "no such letter" in place.run("dead", "requeue", name, code=1).stderr
    place.run("dead", "drop", first["letter"], code=2)  # without a reason
    done = place.run("dead", "drop", first["letter"], "--why", "a test entry")
    assert done.stdout == f"{first['letter']}: dropped record - of group billing: a test entry\n"
    (noted,) = [row for row in place.answer("access") if row["command"] == "cdr dead drop"]
    assert (noted["filter"], noted["records"]) == (f"{first['letter']}, record - of group billing: a test entry", 1)
    assert place.answer("dead", "requeue", "--all") == {"requeued": 1}
    assert place.run("dead", "list").stdout == "no dead letters\n"
    async with Consumer(client, group="billing", idle_s=1) as consumer:
        assert [one.record.seq async for batch in consumer.batches(follow=False) for one in batch] == [1]
    place.run("dead", "requeue", second["letter"], code=1)
