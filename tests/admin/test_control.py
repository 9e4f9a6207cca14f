"""The control socket: one JSON line each way, everything bounded, the node never harmed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sipproxy.admin import control
from sipproxy.admin.control import ControlError, ControlServer, NodeAwayError, ask, follow


async def _slowly(request: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"got": request}


def _refuses(_: dict[str, Any]) -> dict[str, Any]:
    raise ControlError("there is no line 'x'")


def _breaks(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("secret detail")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[tuple[ControlServer, Path, list[tuple[str, Exception]]]]:
    path = tmp_path / "control.sock"
    errors: list[tuple[str, Exception]] = []
    handlers: dict[str, control.Handler] = {
        "calls": lambda request: {"calls": [], "with": request},
        "slow": _slowly,
        "refuse": _refuses,
        "break": _breaks,
        "large": lambda _: {"text": "x" * control.MAX_RESPONSE_BYTES},
        "binary": lambda _: {"object": object()},
    }
    server = ControlServer(path, handlers, on_error=lambda command, error: errors.append((command, error)))
    await server.start()
    yield server, path, errors
    await server.close()


async def asked(path: Path, command: str, **args: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, path, command, **args)


async def exchanged(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    line = await reader.readline()
    writer.close()
    return line


async def test_ask_known_command_gets_the_handlers_result(node: Any) -> None:
    _, path, _ = node
    assert await asked(path, "calls", line="V1", limit=3) == {"calls": [], "with": {"line": "V1", "limit": 3}}
    assert await asked(path, "slow", a=1) == {"got": {"a": 1}}


async def test_ask_refused_command_raises_with_the_handlers_words(node: Any) -> None:
    _, path, errors = node
    with pytest.raises(ControlError, match="there is no line 'x'"):
        await asked(path, "refuse")
    assert errors == []


async def test_ask_unknown_command_names_the_known_ones(node: Any) -> None:
    _, path, _ = node
    with pytest.raises(ControlError, match=r"unknown command 'nonsense'; known: .*calls"):
        await asked(path, "nonsense")


@pytest.mark.parametrize("command", ["break", "binary"])
async def test_ask_handler_that_breaks_is_answered_and_told_to_the_node(node: Any, command: str) -> None:
    _, path, errors = node
    with pytest.raises(ControlError, match=f"{command} failed in the node") as caught:
        await asked(path, command)
    assert "secret detail" not in str(caught.value)
    assert [name for name, _ in errors] == [command]
    assert await asked(path, "slow") == {"got": {}}


async def test_ask_answer_above_the_bound_is_refused(node: Any) -> None:
    _, path, _ = node
    with pytest.raises(ControlError, match="ask for fewer"):
        await asked(path, "large")


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{\n", b"\xff\xfe\n", b"1\n", b'{"a":' * 2000 + b"\n"])
async def test_serve_line_that_is_no_object_is_refused_and_the_node_lives(node: Any, line: bytes) -> None:
    _, path, _ = node
    assert b'"ok":false' in await exchanged(path, line)
    assert await asked(path, "slow") == {"got": {}}


async def test_serve_request_above_the_bound_is_refused_and_counted(node: Any) -> None:
    server, path, _ = node
    assert b"65536 bytes" in await exchanged(path, b'{"command":"' + b"x" * 2 * control.MAX_REQUEST_BYTES)
    assert server.refused == 1


async def test_serve_connections_above_the_bound_are_dropped_and_counted(node: Any) -> None:
    server, path, _ = node
    held = [await asyncio.open_unix_connection(path) for _ in range(control.MAX_CONNECTIONS)]
    for _, writer in held:  # each is served, so it is counted before the next one comes
        writer.write(b'{"command":"slow"}\n')
    assert all([b"true" in await reader.readline() for reader, _ in held])
    with pytest.raises(NodeAwayError):
        await asked(path, "slow")
    assert server.refused == 1
    for _, writer in held:
        writer.close()


async def test_start_socket_is_for_its_owner_alone_and_goes_with_the_node(node: Any) -> None:
    server, path, _ = node
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    assert not path.exists()
    await server.close()


async def test_start_beside_a_running_node_is_refused(node: Any) -> None:
    _, path, _ = node
    with pytest.raises(OSError, match="a node is running on this data directory"):
        await ControlServer(path, {}).start()
    assert await asked(path, "slow") == {"got": {}}


async def test_start_after_a_killed_node_takes_its_socket_over(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, {"slow": _slowly})
    await server.start()
    assert await asked(path, "slow") == {"got": {}}
    await server.close()


async def test_start_path_longer_than_an_address_is_reached_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    server = ControlServer(folder / "control.sock", {"slow": _slowly})
    await server.start()
    assert await asked(folder / "control.sock", "slow") == {"got": {}}
    await server.close()
    assert not (folder / "control.sock").exists()


async def test_start_without_the_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await ControlServer(tmp_path / "absent" / "control.sock", {}).start()


def test_ask_without_a_node_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(NodeAwayError, match=r"no node answers on .*control\.sock"):
        ask(tmp_path / "control.sock", "calls")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
        found.listen(1)
        yield found


def test_ask_and_follow_a_silent_node_end_at_the_bound(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        with pytest.raises(NodeAwayError, match=r"did not answer within 0\.05 s"):
            ask(tmp_path / "s", "calls", timeout_s=0.05)
        with pytest.raises(NodeAwayError, match=r"said nothing for 0\.05 s"):
            next(follow(tmp_path / "s", "follow", patience_s=0.05))


@pytest.mark.parametrize("asking", [lambda path: ask(path, "calls"), lambda path: list(follow(path, "follow"))])
def test_ask_and_follow_what_is_no_node_are_told_so(tmp_path: Path, asking: Callable[[Path], object]) -> None:
    with listening(tmp_path / "s") as other, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            client, _ = other.accept()
            with client:
                client.recv(control.MAX_REQUEST_BYTES)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        answering = pool.submit(answer)
        with pytest.raises(NodeAwayError, match="is not a node"):
            asking(tmp_path / "s")
        answering.result(30)
