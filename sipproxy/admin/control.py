"""The control socket of a running node: a Unix-domain socket in its data directory, for commands on the same machine.

One JSON object a line each way: `{"command": "calls", ...}` is answered by `{"ok": true, "result": {...}}` or
`{"ok": false, "error": "..."}`; a command that streams answers with many such lines and closes. Sizes, times and the number of
connections are bounded. Who may open the socket is
decided by the file's mode (0600) alone. Leaves out: HTTP, which is for operators on other machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

__all__ = [
    "MAX_REQUEST_BYTES",
    "MAX_RESPONSE_BYTES",
    "ControlError",
    "ControlServer",
    "Handler",
    "NodeAwayError",
    "Streamer",
    "ask",
    "follow",
    "follow_async",
    "socket_path",
]

MAX_REQUEST_BYTES = 65_536
MAX_RESPONSE_BYTES = 32 * 1024 * 1024  # all the calls of a node at its limit
MAX_CONNECTIONS = 32
IDLE_S = 30.0
MAX_PATH_BYTES = 103  # sockaddr_un on Linux has 108 bytes, on macOS 104, each with a closing zero

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]] | dict[str, Any]]
Streamer = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]


class ControlError(Exception):
    """A command was refused or failed; the text says why, for the operator."""


class NodeAwayError(ControlError):
    """No node answers on that socket."""


def socket_path(data_dir: str | Path) -> Path:
    """Where a node with this data directory listens."""
    return Path(data_dir) / "control.sock"


class ControlServer:
    """The node's side. A handler gets the request without its command and returns a JSON-able dict; it raises ControlError
    to refuse with a text. Any other exception is answered as such and given to `on_error`, and the node lives on."""

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        streamers: Mapping[str, Streamer] | None = None,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._streamers = dict(streamers or {})
        self._on_error = on_error
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.refused = 0

    async def start(self) -> None:
        """Listen. Raises OSError when another node answers on the path, or it cannot be used."""
        if _answers(self._path):
            raise OSError(errno.EADDRINUSE, "a node is running on this data directory", str(self._path))
        self._path.unlink(missing_ok=True)  # left by a node that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # the file is never wider than 0600, not even for a moment
        try:
            with _reachable(self._path) as short:
                listener.bind(short)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """Stop listening and remove the socket. Harmless when repeated."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= MAX_CONNECTIONS:
            self.refused += 1
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readuntil(b"\n")
                command, request = _request(line)
                if request is not None and command in self._streamers:
                    await self._stream(command, request, writer)
                    return
                await _send(writer, await self._answer(command, request))
        except asyncio.LimitOverrunError:
            self.refused += 1
            writer.write(_refusal(f"a request has at most {MAX_REQUEST_BYTES} bytes"))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the client has gone, or said nothing for IDLE_S
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _stream(self, command: str, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Send what a command tells as it comes, until it ends or the client has gone."""
        async with contextlib.aclosing(self._streamers[command](request)) as events:  # type: ignore[type-var]
            try:
                async for event in events:
                    await _send(writer, msgspec.json.encode({"ok": True, "result": event}) + b"\n")
            except ControlError as error:
                await _send(writer, _refusal(str(error)))

    async def _answer(self, command: str, request: dict[str, Any] | None) -> bytes:
        if request is None:
            return _refusal("a request is one JSON object on one line")
        handler = self._handlers.get(command)
        if handler is None:
            return _refusal(f"unknown command {command[:80]!r}; known: {', '.join(sorted(self._handlers))}")
        try:
            result = handler(request)
            if inspect.isawaitable(result):
                result = await result
            answer = msgspec.json.encode({"ok": True, "result": result}) + b"\n"
        except ControlError as error:
            return _refusal(str(error))
        except Exception as error:  # an operator's question must never end the node
            if self._on_error is not None:
                self._on_error(command, error)
            return _refusal(f"{command} failed in the node: {type(error).__name__}; see its log")
        if len(answer) > MAX_RESPONSE_BYTES:
            return _refusal(f"the answer has {len(answer)} bytes, more than {MAX_RESPONSE_BYTES}; ask for fewer entries")
        return answer


def ask(path: Path, command: str, *, timeout_s: float = 5.0, **args: Any) -> dict[str, Any]:
    """The result of one command on the node that listens on `path`. Blocks: for commands, not for a node's event loop.

    Raises NodeAwayError when none answers, ControlError when it refuses.
    """
    with _asked(path, {"command": command, **args}, timeout_s, f"did not answer within {timeout_s:g} s") as client:
        return _result(path, _read_line(client))


def follow(path: Path, command: str, *, patience_s: float = 20.0, **args: Any) -> Iterator[dict[str, Any]]:
    """What a streaming command tells, as it comes. Raises NodeAwayError when nothing comes for `patience_s`, ControlError when
    it is refused."""
    with (
        _asked(path, {"command": command, **args}, patience_s, f"said nothing for {patience_s:g} s") as client,
        client.makefile("rb") as lines,
    ):
        while line := lines.readline(MAX_RESPONSE_BYTES):
            yield _result(path, line)


async def follow_async(path: Path, command: str, **args: Any) -> AsyncIterator[dict[str, Any]]:
    """As `follow`, on an event loop and without a bound on its silence. Raises NodeAwayError and ControlError."""
    try:
        with _reachable(path) as short:
            reader, writer = await asyncio.open_unix_connection(short, limit=MAX_RESPONSE_BYTES)
    except OSError as error:
        raise NodeAwayError(f"no node answers on {path} ({error.strerror or error})") from None
    try:
        writer.write(msgspec.json.encode({"command": command, **args}) + b"\n")
        while line := await reader.readline():
            yield _result(path, line)
    except OSError as error:
        raise NodeAwayError(f"no node answers on {path} ({error.strerror or error})") from None
    finally:
        writer.close()


@contextlib.contextmanager
def _asked(path: Path, request: dict[str, Any], timeout_s: float, silent: str) -> Iterator[socket.socket]:
    """A connection to the node that has heard `request`. Raises NodeAwayError, also for what goes wrong with it later; with
    `silent` after `timeout_s` without a byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            with _reachable(path) as short:
                client.connect(short)
            client.sendall(msgspec.json.encode(request) + b"\n")
            yield client
        except TimeoutError:
            raise NodeAwayError(f"the node on {path} {silent}") from None
        except OSError as error:
            raise NodeAwayError(f"no node answers on {path} ({error.strerror or error})") from None


def _result(path: Path, line: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        raise NodeAwayError(f"what answers on {path} is not a node") from None
    if answer.get("ok") is not True:
        raise ControlError(str(answer.get("error", "refused")))
    result: dict[str, Any] = answer["result"]
    return result


def _request(line: bytes) -> tuple[str, dict[str, Any] | None]:
    """Command and request of a line; None where it is no such thing."""
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None
    return str(request.pop("command", None)), request


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    async with asyncio.timeout(IDLE_S):
        writer.write(data)
        await writer.drain()


def _read_line(client: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while not parts or not parts[-1].endswith(b"\n"):
        part = client.recv(65_536)
        size += len(part)
        if not part or size > MAX_RESPONSE_BYTES:
            raise ConnectionError(errno.ECONNRESET, "the answer broke off" if not part else "the answer is too large")
        parts.append(part)
    return b"".join(parts)


def _refusal(text: str) -> bytes:
    return msgspec.json.encode({"ok": False, "error": text}) + b"\n"


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of the socket `path` that fits into sockaddr_un: the path itself, or one through its open folder (Linux)."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket file `path`."""
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            with _reachable(path) as short:
                probe.connect(short)
        except OSError:
            return False
    return True
