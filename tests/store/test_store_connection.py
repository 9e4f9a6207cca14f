"""store.connection: order, exactly one answer per command, bounds, and health by name (design §8)."""

from __future__ import annotations

import asyncio

import pytest
from store_server import PATIENT, Connect, Relay, Server, eventually, impatient

from sipproxy.store.connection import Bounds, State, Store
from sipproxy.store.errors import ReplyError, StoreError
from sipproxy.store.wire import address_of


def named(replies: list[object]) -> list[str]:
    return [reply.name if isinstance(reply, StoreError) else "ok" for reply in replies]


async def test_submit_one_tick_leaves_as_one_pipeline_in_order(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    pipelines, replies = store.stats.pipelines, []
    for number in range(500):
        store.submit(("ECHO", number), replies.append)
    assert replies == []
    await eventually(lambda: len(replies) == 500)
    assert replies == [b"%d" % number for number in range(500)]
    assert store.stats.pipelines == pipelines + 1


async def test_submit_that_lingers_leaves_with_the_next_command_and_before_it(server: Server, connect: Connect) -> None:
    store = await connect(server.url, bounds=Bounds(probe_ms=3_600_000, stall_ms=3_600_000))
    pipelines, replies = store.stats.pipelines, []
    for number in range(3):
        store.submit(("ECHO", number), replies.append, linger_s=3600.0)
        await asyncio.sleep(0.01)
    assert store.stats.pipelines == pipelines
    store.submit(("ECHO", "now"), replies.append)
    store.submit(("ECHO", "last"), replies.append, linger_s=3600.0)
    await eventually(lambda: len(replies) == 5)
    assert replies == [b"0", b"1", b"2", b"now", b"last"]
    assert store.stats.pipelines == pipelines + 1


async def test_submit_that_lingers_less_takes_along_what_lingers_longer(server: Server, connect: Connect) -> None:
    store = await connect(server.url, bounds=Bounds(probe_ms=3_600_000, stall_ms=3_600_000))
    pipelines, replies = store.stats.pipelines, []
    for linger_s in (3600.0, 0.01, 3600.0):
        store.submit(("ECHO", str(linger_s)), replies.append, linger_s=linger_s)
    assert not store.stats.pipelines - pipelines
    await eventually(lambda: len(replies) == 3)
    assert replies == [b"3600.0", b"0.01", b"3600.0"]
    assert store.stats.pipelines == pipelines + 1
    assert 0 <= store.stats.latency_ms < 1_000_000, "the time that it lingered for, and did not, is none of the store's"


async def test_submit_that_lingers_does_not_leave_when_the_time_of_one_before_it_is_over(
    server: Server, connect: Connect
) -> None:
    store = await connect(server.url, bounds=Bounds(probe_ms=3_600_000, stall_ms=3_600_000))
    loop, replies = asyncio.get_running_loop(), list[object]()
    store.submit(("ECHO", "first"), replies.append, linger_s=0.1)
    store.submit(("ECHO", "now"), replies.append)  # takes it along
    await eventually(lambda: len(replies) == 2)
    begun = loop.time()
    store.submit(("ECHO", "second"), replies.append, linger_s=0.3)
    await eventually(lambda: len(replies) == 3)
    assert loop.time() - begun >= 0.299


@pytest.mark.plain_alone
async def test_state_is_looked_at_once_in_a_deadline_while_nothing_is_awaited(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await connect(server.url, 300, bounds=Bounds(probe_ms=3_600_000))
    loop, looked = asyncio.get_running_loop(), list[float]()
    monkeypatch.setattr(store, "_assess", lambda: looked.append(loop.time()))
    await eventually(lambda: len(looked) == 3)
    assert looked[2] - looked[1] >= 0.299


async def test_submit_that_lingers_leaves_by_itself(server: Server, connect: Connect) -> None:
    store = await connect(server.url, bounds=Bounds(probe_ms=3_600_000, stall_ms=3_600_000))  # no probe takes it along
    replies: list[object] = []
    for number in range(1, 4):
        store.submit(("ECHO", number), replies.append, linger_s=0.005)
        await eventually(lambda: len(replies) == number)  # noqa: B023  awaited here
    await store.close()
    assert len(replies) == 3


async def test_submit_error_reply_reaches_only_its_own_callback(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    replies = await store.execute_all([("ECHO", "a"), ("NOSUCH",), ("SET", "k", "v"), ("ZADD", "k", 1, "m"), ("ECHO", "b")])
    assert replies[0] == b"a"
    assert replies[4] == b"b"
    assert named(replies) == ["ok", "ERR", "ok", "WRONGTYPE", "ok"]
    assert store.state is State.UP
    assert (store.stats.errors["ERR"], store.stats.errors["WRONGTYPE"]) == (1, 1)


async def test_submit_wrong_argument_raises_at_the_caller(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    with pytest.raises(TypeError):
        store.submit(("SET", "k", None), lambda _: None)  # type: ignore[arg-type]
    assert await store.execute("PING") == b"PONG"


async def test_callback_that_raises_does_not_keep_replies_from_others(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    replies: list[object] = []

    def fail(_: object) -> None:
        raise RuntimeError("fault")

    store.submit(("ECHO", "a"), fail)
    store.submit(("ECHO", "b"), replies.append)
    await eventually(lambda: replies == [b"b"])
    assert [type(fault) for fault in faults] == [RuntimeError]
    assert store.stats.callback_faults == 1


async def test_submit_with_key_supersedes_what_has_not_left(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    old: list[object] = []
    new: list[object] = []
    store.submit(("APPEND", "k", "old"), old.append, key="k")
    store.submit(("APPEND", "k", "new"), new.append, key="k")
    await eventually(lambda: old and new)
    assert named(old) == ["SUPERSEDED"]
    assert await store.execute("GET", "k") == b"new"
    store.submit(("APPEND", "k", "er"), key="k")  # the one before has left: both count
    assert await store.execute("GET", "k") == b"newer"


async def test_submit_beyond_count_bound_is_refused_by_name(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url, bounds=Bounds(commands=10, stall_ms=60_000))
    relay.hold()
    replies: list[object] = []
    for number in range(15):
        store.submit(("ECHO", number), replies.append)
    await eventually(lambda: len(replies) == 5)
    assert named(replies) == ["FULL"] * 5
    assert store.stats.errors["FULL"] == 5
    relay.let_go()
    await eventually(lambda: len(replies) == 15)
    assert replies[5:] == [b"%d" % number for number in range(10)]
    assert store.pending_bytes == 0


async def test_submit_beyond_byte_bound_is_refused_and_frozen_server_gets_no_more(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url, bounds=Bounds(bytes=4_000_000, stall_ms=60_000))
    doomed.freeze()
    replies: list[object] = []
    for _ in range(100):
        store.submit(("SET", "k", b"x" * 99_000), replies.append)
    await eventually(lambda: len(replies) > 50)
    assert set(named(replies)) == {"FULL"}
    assert store.pending_bytes <= 4_000_000
    doomed.thaw()
    await eventually(lambda: len(replies) == 100)
    assert named(replies).count("ok") == 40
    assert store.pending_bytes == 0


async def test_state_frozen_server_is_slow_then_away_then_up(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url, deadline_ms=100)
    states: list[tuple[State, str]] = []
    store.on_state(lambda state, reason: states.append((state, reason)))
    doomed.freeze()
    replies: list[object] = []
    store.submit(("ECHO", "a"), replies.append)
    await eventually(lambda: store.state is State.SLOW)
    with impatient(store):
        await eventually(lambda: store.state is State.AWAY)
        assert named(replies) == ["LOST"]
        store.submit(("ECHO", "b"), replies.append)
        assert len(replies) == 1  # never before submit has returned
        await asyncio.sleep(0)
        assert named(replies) == ["LOST", "AWAY"]
        await eventually(lambda: (State.AWAY, "TIMEOUT") in states)
    assert states[:2] == [(State.SLOW, "DEADLINE"), (State.AWAY, "STALLED")]
    doomed.thaw()
    await eventually(lambda: store.state is State.UP)
    assert await store.execute("ECHO", "c") == b"c"


async def test_state_idle_store_notices_a_frozen_server_without_a_command(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    doomed.freeze()
    with impatient(store):
        await eventually(lambda: store.state is State.AWAY)


async def test_state_slow_replies_recover_without_reconnect(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url, deadline_ms=50)
    relay.hold()
    replies: list[object] = []
    store.submit(("ECHO", "a"), replies.append)
    await eventually(lambda: store.state is State.SLOW)
    assert replies == []
    relay.let_go()
    await eventually(lambda: store.state is State.UP)
    assert replies == [b"a"]
    assert store.stats.connects == 1


async def test_connection_killed_server_comes_back_after_restart(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    await store.execute("SET", "k", "v")
    doomed.kill()
    await eventually(lambda: store.state is State.AWAY)
    with pytest.raises(StoreError, match="AWAY"):
        await store.execute("GET", "k")
    doomed.start()
    await eventually(lambda: store.state is State.UP)
    assert await store.execute("GET", "k") == b"v"


async def test_start_without_server_returns_false_and_run_connects_later(doomed: Server, connect: Connect) -> None:
    doomed.kill()
    store = await connect(doomed.url)
    assert store.state is State.AWAY
    doomed.start()
    await eventually(lambda: store.state is State.UP)


async def test_connection_cut_gives_each_command_exactly_one_answer(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url)
    answers: dict[int, list[object]] = {}
    for number in range(3000):
        store.submit(("ECHO", number), answers.setdefault(number, []).append)
        if number % 7 == 0:
            await asyncio.sleep(0)
        if number % 500 == 250:
            relay.cut()
        if number % 500 == 400:
            await eventually(lambda: store.state is State.UP)
    await eventually(lambda: all(answers.values()))
    await asyncio.sleep(0.05)
    assert {len(answer) for answer in answers.values()} == {1}
    for number, (answer,) in answers.items():
        assert answer == b"%d" % number or (isinstance(answer, StoreError) and answer.name in {"LOST", "AWAY"})
    assert store.stats.connects > 3
    assert store.stats.errors.get("LOST", 0) > 0


async def test_reconnect_fences_off_commands_left_in_the_old_connection(relay: Relay, connect: Connect) -> None:
    """What a dropped connection still holds on its way must not be executed after what was submitted later."""
    store = await connect(relay.url)
    relay.delay_requests()
    lost: list[object] = []
    store.submit(("SET", "k", "old"), lost.append)
    with impatient(store):
        await eventually(lambda: lost)
    assert named(lost) == ["LOST"]
    await eventually(lambda: store.state is State.UP)
    await store.execute("SET", "k", "new")
    await relay.deliver_requests()
    for _ in range(50):  # were the old connection alive, it would be served by now
        assert await store.execute("GET", "k") == b"new"
    assert store.stats.unfenced == 0


async def test_reconnect_to_restarted_server_kills_nobody_by_an_old_id(doomed: Server, connect: Connect) -> None:
    """A new server counts client ids from the start: the old id may be somebody else's."""
    store = await connect(doomed.url)
    for _ in range(5):
        doomed.kill()
        await eventually(lambda: store.state is State.AWAY)
        doomed.start()
        await eventually(lambda: store.state is State.UP)
    assert "client|kill" not in str(doomed.ask("INFO", "commandstats"))


@pytest.mark.parametrize(
    ("name", "break_", "mend"),
    [
        ("READONLY", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        ("OOM", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        ("NOREPLICAS", ("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    ],
)
async def test_state_refusing_server_is_named_and_recovers_by_probe(
    doomed: Server, connect: Connect, name: str, break_: tuple[str, ...], mend: tuple[str, ...]
) -> None:
    store = await connect(doomed.url)
    doomed.ask(*break_)
    with pytest.raises(ReplyError, match=name):
        await store.execute("SET", "k", "v")
    assert (store.state, store.reason) == (State.REFUSING, name)
    assert await store.execute("GET", "k") is None  # a read that works is no sign of recovery
    if name != "READONLY":  # on which the address is dialled again
        assert store.state is State.REFUSING
    doomed.ask(*mend)
    await eventually(lambda: store.state is State.UP)
    assert await store.execute("SET", "k", "v") == b"OK"


async def test_state_refusing_before_mending_does_not_flap_up(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    doomed.ask("CONFIG", "SET", "maxmemory", "1")
    store.submit(("SET", "k", "v"))
    await eventually(lambda: store.state is State.REFUSING)
    states: list[State] = []
    store.on_state(lambda state, _: states.append(state))
    for _ in range(10):
        store.submit(("ZREM", "z", "m"))  # allowed without memory
        await asyncio.sleep(0.03)
    assert states == []


async def test_state_busy_script_is_slow_and_named(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    doomed.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    other = await connect(doomed.url)
    other.submit(("EVAL", "while true do end", 0))
    replies: list[object] = []

    def busy() -> bool:
        store.submit(("SET", "k", "v"), replies.append)
        return "BUSY" in named(replies)

    await eventually(busy)
    doomed.ask("SCRIPT", "KILL")
    await eventually(lambda: store.state is State.UP)


async def test_state_password_missing_or_wrong_is_away_by_name(doomed: Server, connect: Connect) -> None:
    doomed.ask("CONFIG", "SET", "requirepass", "secret")
    missing = await connect(doomed.url)
    wrong = await connect(f"{doomed.url}?password=wrong")
    assert (missing.state, missing.reason) == (State.AWAY, "NOAUTH")
    assert (wrong.state, wrong.reason) == (State.AWAY, "WRONGPASS")
    right = await connect(f"{doomed.url}?password=secret")
    assert right.state is State.UP
    assert await right.client.ping()


async def test_state_loading_server_is_away_by_name(doomed: Server, connect: Connect) -> None:
    doomed.ask("DEBUG", "POPULATE", "10000")
    doomed.ask("CONFIG", "SET", "key-load-delay", "500")
    doomed.ask("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
    store = await connect(doomed.url)
    states: list[tuple[State, str]] = []
    store.on_state(lambda state, reason: states.append((state, reason)))
    loader = await connect(doomed.url)
    loader.submit(("DEBUG", "RELOAD"))
    replies: list[object] = []

    def loading() -> bool:
        store.submit(("SET", "k", "v"), replies.append)
        return "LOADING" in named(replies)

    await eventually(loading)
    assert (State.REFUSING, "LOADING") in states
    doomed.ask("CONFIG", "SET", "key-load-delay", "0")
    await eventually(lambda: store.state is State.UP)


async def test_close_lets_submitted_commands_finish_and_answers_the_rest(server: Server) -> None:
    store = Store(server.url)
    assert await store.start()
    run = asyncio.create_task(store.run())
    replies: list[object] = []
    store.submit(("ECHO", "a"), replies.append)
    await store.close()
    await run
    assert replies == [b"a"]
    store.submit(("ECHO", "b"), replies.append)
    await asyncio.sleep(0)
    assert named(replies) == ["ok", "AWAY"]


async def test_close_with_frozen_server_ends_within_its_bound(doomed: Server) -> None:
    store = Store(doomed.url)
    assert await store.start()
    doomed.freeze()
    replies: list[object] = []
    store.submit(("ECHO", "a"), replies.append)
    async with asyncio.timeout(60):
        await store.close()
    assert named(replies) == ["LOST"]


@pytest.mark.parametrize("is_up", [True, False])
async def test_run_cancelled_ends_at_once(doomed: Server, is_up: bool) -> None:
    if not is_up:
        doomed.freeze()
    store = Store(doomed.url, bounds=PATIENT)
    run = asyncio.create_task(store.run())
    await eventually(lambda: store.state is State.UP if is_up else store.pending)  # greeting it, that is
    run.cancel()
    done, _ = await asyncio.wait([run], timeout=PATIENT.connect_ms / 2000)
    assert done == {run}
    await store.close()


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "database", "has_tls"),
    [
        ("unix:///run/s.sock?db=3", "127.0.0.1", 6379, "/run/s.sock", 3, False),
        ("redis://127.0.0.9:7000/2", "127.0.0.9", 7000, "", 2, False),
        ("valkey://127.0.0.9", "127.0.0.9", 6379, "", 0, False),
        ("rediss://127.0.0.9:7000", "127.0.0.9", 7000, "", 0, True),
        ("valkeys://[::1]:7000", "::1", 7000, "", 0, True),
    ],
)
def test_address_of_url_reads_each_scheme(url: str, host: str, port: int, path: str, database: int, has_tls: bool) -> None:
    address = address_of(url)
    assert (address.host, address.port, address.path, address.database) == (host, port, path, database)
    assert (address.tls is not None) is has_tls


def test_address_of_unknown_scheme_raises() -> None:
    with pytest.raises(ValueError, match="scheme"):
        address_of("sentinel://127.0.0.1:26379")


def test_greeting_with_user_authenticates_before_all_else() -> None:
    greeting = address_of("redis://u:p@127.0.0.1/4").greeting("n")
    assert greeting == [("AUTH", "u", "p"), ("SELECT", 4), ("CLIENT", "SETNAME", "n")]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OOM command not allowed", "OOM"),
        ("ERR Error running script (call to f_1): @user_script:6: -OOM command not allowed", "OOM"),
        ("ERR unknown command", "ERR"),
        ("MOVED 3999 127.0.0.1:6381", "MOVED"),
        ("what is this", "ERR"),
        ("", "ERR"),
    ],
)
def test_reply_error_text_is_named_by_its_cause(text: str, name: str) -> None:
    assert ReplyError(text).name == name
