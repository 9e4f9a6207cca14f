"""cdr.publisher against a real server: every record once and in order, whatever the store does (invariants 3, 5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis.asyncio
from cdr_samples import draft, ended

from cdr.entries import Poison
from cdr.facts import Admit, Record
from cdr.journal import Journal
from cdr.publisher import Publisher, mark_key
from cdr.tailing import tail
from cdr.wire import Link, name_of

if TYPE_CHECKING:
    from valkey_process import Valkey

STREAM = "sp:cdr"
FAST = {"timeout_s": 0.3}


class Node:
    """A journal and its publisher, which a test stops and starts like a process."""

    def __init__(self, directory: Path, client: redis.asyncio.Redis, **options: object) -> None:
        self.directory, self.client, self.options = directory, client, options
        self.states: list[str] = []

    def start(self) -> Node:
        self.journal = Journal(self.directory, node="n1", segment_bytes=65536, fsync_interval_ms=1)
        self.journal.recover()
        self.publisher = Publisher(
            self.client,
            self.journal,
            stream=STREAM,
            node="n1",
            on_state=lambda state, _: self.states.append(state),
            **{"batch": 20, **FAST, **self.options},
        )
        self.task = asyncio.create_task(self.publisher.run())
        return self

    def call(self, count: int = 1) -> None:
        for _ in range(count):
            seq = self.journal.last_seq + 1
            self.journal.append(Admit(draft(f"call-{seq}")))
            self.journal.append(ended(seq))
            self.publisher.wake()

    def failures(self) -> int:
        return sum(self.publisher.stats.errors.values())

    async def drained(self) -> None:
        assert await self.publisher.flush(20), self.publisher.stats

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.journal.close()


@pytest.fixture
async def node(tmp_path: Path, client: redis.asyncio.Redis) -> AsyncIterator[Node]:
    made = Node(tmp_path / "journal", client).start()
    yield made
    await made.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  the conditions are counters of the code under test
            await asyncio.sleep(0.005)


async def published(client: redis.asyncio.Redis) -> list[int]:
    """The numbers in the stream, in its order; every entry is a whole record."""
    found = [record async for record in tail(client, STREAM, last=100_000)]
    assert not [record for record in found if isinstance(record, Poison)]
    return [record.seq for record in found if isinstance(record, Record)]


async def test_publisher_moves_records_in_order_with_their_fields(node: Node, client: redis.asyncio.Redis) -> None:
    assert node.publisher.stats.state == "starting"
    node.call(70)
    await node.drained()
    assert await published(client) == list(range(1, 71))
    _, fields = (await client.xrange(STREAM, count=1))[0]
    assert set(fields) == {b"id", b"v", b"type", b"node", b"seq", b"d"}
    assert (fields[b"id"], fields[b"v"], fields[b"type"], fields[b"node"], fields[b"seq"]) == (
        b"call-1",
        b"1",
        b"final",
        b"n1",
        b"1",
    )
    stats = node.publisher.stats
    assert (stats.state, stats.backlog, stats.published, stats.repeated, stats.behind_ms) == ("up", 0, 70, 0, 0)
    assert stats.barrier
    assert node.states == ["up"]
    assert node.journal.confirmed_seq == 70


async def test_publisher_goes_on_after_a_restart_of_the_node(node: Node, client: redis.asyncio.Redis) -> None:
    node.call(30)
    await node.drained()
    await node.stop()
    node.start()
    node.call(30)
    await node.drained()
    assert await published(client) == list(range(1, 61))
    assert node.publisher.stats.published == 30


async def test_publisher_server_killed_and_restarted_delivers_each_once(
    node: Node, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    node.call(50)
    await until(lambda: node.publisher.stats.published > 0)
    valkey.kill()
    node.call(200)
    await until(lambda: node.publisher.stats.state == "away")
    assert node.publisher.stats.backlog >= 200
    assert node.publisher.stats.behind_ms > 0
    valkey.start()
    await node.drained()
    assert await published(client) == list(range(1, 251))
    assert node.states[-1] == "up"
    assert node.publisher.stats.errors["away"] >= 1


async def test_publisher_server_stopped_for_a_while_delivers_each_once(
    node: Node, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """SIGSTOP: commands pile up in sockets that were given up, and are executed afterwards."""
    for _ in range(3):
        node.call(40)
        valkey.signal(signal.SIGSTOP)
        node.call(100)
        before = node.failures()
        await until(lambda before=before: node.failures() >= before + 2)  # type: ignore[misc]
        assert node.publisher.stats.state in ("slow", "away")
        valkey.signal(signal.SIGCONT)
        await node.drained()
    assert await published(client) == list(range(1, 421))


class Relay:
    """Between a client and the server. `lose` drops the reply to the next script call, after the server has executed it."""

    def __init__(self, target: str) -> None:
        self.path = tempfile.mktemp(prefix="cdr-relay-")
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose = 0
        self.lost = 0

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):  # Python 3.13 removes it itself.
            os.unlink(self.path)  # noqa: PTH108

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        back = asyncio.create_task(self._back(up_reader, writer))
        try:
            while data := await reader.read(1 << 20):
                if b"EVAL" in data:
                    self._script = True
                up_writer.write(data)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()
            self._tasks.discard(task)

    _script = False

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            if self._script and not data.startswith(b"-NOSCRIPT"):
                self._script = False
                if self.lose:
                    self.lose -= 1
                    self.lost += 1
                    writer.close()  # The script ran; nobody hears of it.
                    return
            writer.write(data)
        writer.close()


async def test_publisher_reply_lost_after_the_script_ran_delivers_each_once(tmp_path: Path, valkey: Valkey) -> None:
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through).start()
        for _ in range(4):
            relay.lose = 1
            node.call(50)
            await until(lambda: relay.lose == 0)
            await node.drained()
        assert relay.lost == 4
        assert node.publisher.stats.repeated > 0
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, 201))


async def test_publisher_reply_lost_and_node_killed_delivers_each_once(tmp_path: Path, valkey: Valkey) -> None:
    """The store has records that the journal does not know to be there, and the next run finds out."""
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through).start()
        node.call(10)
        await node.drained()
        relay.lose = 1
        node.call(15)
        await until(lambda: relay.lost == 1)
        await node.stop()
        assert node.journal.confirmed_seq == 10
        node.start()
        node.call(5)
        await node.drained()
        assert node.publisher.stats.repeated > 0
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, 31))


async def test_publisher_troubles_in_any_order_deliver_each_once(tmp_path: Path, valkey: Valkey) -> None:
    """Lost replies, a stopped server, a killed server, a killed node, in random order and while calls go on."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through).start()
        for _ in range(12):
            node.call(chance.randrange(60))
            await asyncio.sleep(chance.uniform(0, 0.1))
            trouble = chance.choice(("reply", "stop", "kill", "node", "none"))
            if trouble == "reply":
                relay.lose += 1
            elif trouble == "stop":
                valkey.signal(signal.SIGSTOP)
                node.call(chance.randrange(60))
                await asyncio.sleep(chance.uniform(0, 0.6))
                valkey.signal(signal.SIGCONT)
            elif trouble == "kill":
                valkey.kill()
                node.call(chance.randrange(60))
                valkey.start()
            elif trouble == "node":
                await node.stop()
                node.start()
        relay.lose = 0
        await node.drained()
        last = node.journal.last_seq
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, last + 1))


async def test_publisher_script_of_an_earlier_run_comes_late_and_is_refused(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """The server was stopped; a node died with its command in the server's socket, and its successor was faster."""
    node = Node(tmp_path / "journal", client).start()
    node.call(5)
    await node.drained()
    valkey.signal(signal.SIGSTOP)
    node.call(10)
    await until(lambda: node.failures() >= 1)
    run, token = node.publisher._run_number, node.publisher._token
    await node.stop()
    valkey.signal(signal.SIGCONT)
    node.start()
    node.call(10)
    await node.drained()
    late = Publisher(client, node.journal, stream=STREAM, node="n1")
    late._run_number, late._token = run, token
    entries, _ = node.journal.read(0, seq=1, end=node.journal.position)
    body = [part for entry in entries for part in (entry.seq, entry.id, entry.schema, entry.type, entry.record)]
    assert (await late._evaluate("n1", run, token, 0, 0, 0, *body))[0] == -1
    await late._link.drop()
    assert await published(client) == list(range(1, 26))
    await node.stop()


async def test_publisher_emptied_store_is_continued_behind_what_was_confirmed(node: Node, client: redis.asyncio.Redis) -> None:
    node.call(10)
    await node.drained()
    await client.flushall()
    node.call(5)
    await node.drained()
    assert await published(client) == [11, 12, 13, 14, 15]


async def test_publisher_store_emptied_before_the_confirmation_gets_all_again(
    node: Node, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent, but not confirmed, is not there any more when the next batch arrives."""
    node.call(10)
    await node.drained()
    real, emptied = node.publisher._send, []

    async def send(entries: list[object]) -> bool:
        if entries[0].seq > 30 and not emptied:  # type: ignore[attr-defined]
            emptied.append(True)
            await client.flushall()
        return await real(entries)  # type: ignore[arg-type]

    monkeypatch.setattr(node.publisher, "_send", send)
    node.call(60)
    await node.drained()
    assert await published(client) == list(range(11, 71))
    assert node.publisher.stats.resent == 1


async def test_publisher_new_journal_below_the_mark_loses_nothing(
    tmp_path: Path, client: redis.asyncio.Redis, node: Node
) -> None:
    """The journal's directory was lost: numbers begin again, and no record is taken for one that was there."""
    node.call(30)
    await node.drained()
    await node.stop()
    node.directory = tmp_path / "another"
    node.start()
    node.call(45)
    await node.drained()
    assert await published(client) == [*range(1, 31), *range(1, 46)]


async def test_publisher_old_copy_of_the_journal_loses_nothing(tmp_path: Path, client: redis.asyncio.Redis, node: Node) -> None:
    """A machine restored from an old image gives numbers that the store has seen with other records."""
    import shutil

    node.call(10)
    await node.drained()
    await node.stop()
    shutil.copytree(node.directory, tmp_path / "image")
    node.start()
    node.call(20)
    await node.drained()
    await node.stop()
    node.directory = tmp_path / "image"
    node.start()
    node.call(25)
    await node.drained()
    assert await published(client) == [*range(1, 31), *range(11, 36)]


async def test_publisher_second_process_with_the_same_node_id_is_noticed(
    tmp_path: Path, client: redis.asyncio.Redis, node: Node
) -> None:
    node.call(3)
    await node.drained()
    other = Node(tmp_path / "other", client).start()
    other.call(3)
    await other.drained()
    node.call(3)
    await node.drained()
    assert node.publisher.stats.errors["contended"] >= 1
    assert sorted(await published(client)) == [1, 1, 2, 2, 3, 3, 4, 5, 6]
    await other.stop()


async def test_publisher_read_only_store_is_named_and_waited_for(node: Node, client: redis.asyncio.Redis) -> None:
    await client.replicaof("127.0.0.1", "1")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "readonly")
    assert node.publisher.stats.reason
    await client.replicaof("NO", "ONE")
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_full_store_is_named_and_waited_for(node: Node, client: redis.asyncio.Redis) -> None:
    await client.config_set("maxmemory", "1")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "oom")
    await client.config_set("maxmemory", "0")
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_key_of_the_wrong_type_is_named_and_loses_nothing(node: Node, client: redis.asyncio.Redis) -> None:
    await client.set(STREAM, "x")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "wrongtype")
    assert await client.hget(mark_key(STREAM, "n1"), "seq") in (b"0", None)
    await client.delete(STREAM)
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_too_few_replicas_is_named_and_waited_for(node: Node, client: redis.asyncio.Redis) -> None:
    await client.config_set("min-replicas-to-write", "1")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "noreplicas")
    await client.config_set("min-replicas-to-write", "0")
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_store_without_append_only_file_is_used_without_barrier(
    node: Node, client: redis.asyncio.Redis
) -> None:
    await client.config_set("appendonly", "no")
    node.call(10)
    await node.drained()
    assert not node.publisher.stats.barrier
    assert await published(client) == list(range(1, 11))


async def test_publisher_maximum_trims_from_the_old_end(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    node = Node(tmp_path / "journal", client, maxlen=100, batch=500).start()
    node.call(1500)
    await node.drained()
    numbers = await published(client)
    assert 100 <= len(numbers) < 500
    assert numbers == list(range(1501 - len(numbers), 1501))
    await node.stop()


async def test_publisher_backlog_is_read_from_disk_in_bounded_batches(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    """Written while nobody published: several segments, more than are sent between two barriers."""
    journal = Journal(tmp_path / "journal", node="n1", segment_bytes=65536)
    journal.recover()
    for seq in range(1, 1201):
        journal.append(ended(seq, user_agent="u" * 200))
    assert journal.stats.segments > 3
    journal.close()
    node = Node(tmp_path / "journal", client).start()
    await node.drained()
    assert await published(client) == list(range(1, 1201))
    assert node.journal.stats.segments == 1
    await node.stop()


async def test_publisher_disk_that_refuses_to_sync_does_not_hold_records_back(node: Node, client: redis.asyncio.Redis) -> None:
    broken = pytest.MonkeyPatch()
    broken.setattr("cdr.storage.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    try:
        node.call(10)
        await node.drained()
        assert await published(client) == list(range(1, 11))
        assert node.journal.stats.failure == "Input/output error"
    finally:
        broken.undo()


async def test_publisher_flush_of_a_store_that_is_away_gives_up_in_time(node: Node, valkey: Valkey) -> None:
    valkey.kill()
    node.call(1)
    assert not await node.publisher.flush(0.2)
    assert node.publisher.stats.backlog == 1


@pytest.mark.parametrize(
    ("stream", "key"),
    [("sp:cdr", "sp:{sp:cdr}:mark:n1"), ("sp:{cdr:0}", "sp:{cdr:0}:mark:n1"), ("{a}{b}", "{a}{b}:mark:n1")],
)
async def test_mark_key_is_in_the_slot_of_the_stream(client: redis.asyncio.Redis, stream: str, key: str) -> None:
    assert mark_key(stream, "n1") == key
    from redis.crc import key_slot

    assert key_slot(key.encode()) == key_slot(stream.encode())


async def test_link_reply_that_does_not_come_raises_and_drops_the_connection(
    client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """The next command must not read the reply of the one that was given up."""
    link = Link(client, timeout_s=0.2)
    await link.call("SET", "a", "1")
    valkey.signal(signal.SIGSTOP)
    with pytest.raises((redis.exceptions.TimeoutError, TimeoutError)):
        await link.call("GET", "a")
    valkey.signal(signal.SIGCONT)
    assert await link.call("ECHO", "mine") == b"mine"
    waiting = asyncio.create_task(link.call("BLPOP", "nothing", 5, timeout_s=10))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await link.call("ECHO", "mine") == b"mine"
    await link.drop()


@pytest.mark.parametrize(
    "outcome", [b"OK", redis.exceptions.NoScriptError("x"), redis.exceptions.ConnectionError("x"), TimeoutError()]
)
async def test_link_cancellation_that_the_client_swallowed_is_raised(
    monkeypatch: pytest.MonkeyPatch, outcome: bytes | Exception
) -> None:
    """asyncio.wait_for of Python 3.11, which redis-py sends with, may lose it; a task would go on for ever."""

    class Connection:
        closed = 0

        async def connect(self) -> None: ...

        async def send_command(self, *_: object) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

        async def read_response(self, **_: object) -> bytes:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def disconnect(self, **_: object) -> None:
            self.closed += 1

    connection = Connection()
    client = redis.asyncio.Redis()
    monkeypatch.setattr(client.connection_pool, "make_connection", lambda: connection)
    waiting = asyncio.create_task(Link(client, timeout_s=1).call("PING"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert connection.closed == 1


async def test_publisher_reply_of_another_shape_is_an_error_and_no_end(
    node: Node, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, replies = node.publisher._link.call, [None, [], [1], ["x", 1], {}, b"OK"]

    async def call(*command: object, **options: object) -> object:
        reply = await real(*command, **options)  # type: ignore[arg-type]
        return replies.pop() if replies and command[0] != "WAITAOF" else reply

    monkeypatch.setattr(node.publisher._link, "call", call)
    monkeypatch.setattr("cdr.publisher.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("cdr.publisher.LONGEST_PAUSE_S", 0.01)
    node.call(10)
    await node.drained()
    assert node.publisher.stats.errors["error"] == 6
    assert await published(client) == list(range(1, 11))


@pytest.mark.parametrize("stream", ["a}b", "a{}b", "{"])
def test_mark_key_braces_that_are_no_hash_tag_raise(stream: str) -> None:
    with pytest.raises(ValueError, match="hash tag"):
        mark_key(stream, "n1")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (redis.exceptions.BusyLoadingError("x"), "loading"),
        (redis.exceptions.AuthenticationError("x"), "noauth"),
        (redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file"), "misconf"),
        (redis.exceptions.ResponseError("CLUSTERDOWN The cluster is down"), "clusterdown"),
        (redis.exceptions.ResponseError("whatever"), "error"),
        (redis.exceptions.MovedError("1 127.0.0.1:1"), "moved"),
        (FileNotFoundError("x"), "away"),
    ],
)
def test_name_of_error_is_the_stores_state(error: Exception, name: str) -> None:
    assert name_of(error) == name
