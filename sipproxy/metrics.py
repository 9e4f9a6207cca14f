"""Metrics in Prometheus' text format, on a loopback HTTP port.

The parts of the node keep plain numbers and dicts; a scrape reads and writes them on the event loop, a few samples at a time,
with the messages that have come in between. Not in a thread: for as long as one computes, each system call of the event loop
waits up to 5 ms for the interpreter's lock behind it. Answers are kept for one second: many scrapers cost as much as one.
Leaves out: TLS and users (the port is for a local scraper), push gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest

from sipproxy.config_file import split_address

__all__ = ["LoopLag", "Metrics", "MetricsServer", "Values"]

MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 16
MAX_SERIES = 10_000  # of one metric; a label that peers can fill must not grow without end
REQUEST_TIMEOUT_S = 5.0
KEEP_S = 1.0
SAMPLES_AT_ONCE = 16  # written in one go: 0.3 ms in which the event loop does nothing else
LAG_INTERVAL_S = 0.1
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# One number, or one number per label value (a text for one label, a tuple for several).
Values = float | Mapping[str, float] | Mapping[tuple[str, ...], float]


class _Source:
    """One metric family and where its values are read."""

    def __init__(self, kind: Literal["counter", "gauge"], name: str, text: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.labels = labels
        self._written = sorted(range(len(labels)), key=labels.__getitem__)  # as whoever reads them as text knows them
        self.read: Callable[[], Values] = dict
        self._sample = f"{name}_total" if kind == "counter" else name
        help_text = text.replace("\\", "\\\\").replace("\n", "\\n")
        self._head = f"# HELP {self._sample} {help_text}\n# TYPE {self._sample} {kind}\n"

    def lines(self) -> Iterator[str]:
        """The values, as they are when the first line is asked for, in Prometheus' text format. Raises what reading does, and
        ValueError where they do not fit the labels."""
        values, sample = self.read(), self._sample
        if not isinstance(values, Mapping):
            yield f"{self._head}{sample} {float(values)!r}\n"
            return
        rows = list(islice(values.items(), MAX_SERIES))
        yield self._head
        for key, value in rows:
            labels = (key,) if isinstance(key, str) else key
            if len(labels) != len(self.labels):
                raise ValueError(f"{self.name} is read without its labels {self.labels}")
            named = ",".join([f'{self.labels[at]}="{_escaped(labels[at])}"' for at in self._written])
            yield f"{sample}{{{named}}} {float(value)!r}\n"


def _escaped(text: str) -> str:
    """A label's value as it stands between quotation marks."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Metrics:
    """The node's metrics: what the parts count, read at scrape time."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()  # of what the library itself counts
        self._sources: list[_Source] = []
        self.failures: dict[str, int] = {}
        self.lag = Histogram(
            "sipproxy_loop_lag_seconds", "how late the event loop ran a timer", buckets=LAG_BUCKETS, registry=self._registry
        )
        ProcessCollector(registry=self._registry)
        self.counter("sipproxy_metric_failures", "readings that failed, by metric", lambda: self.failures, ("metric",))

    def counter(self, name: str, text: str, read: Callable[[], Values], labels: tuple[str, ...] = ()) -> None:
        """Announce a number that only grows. `read` runs on the event loop and must not block."""
        self._add("counter", name, text, read, labels)

    def gauge(self, name: str, text: str, read: Callable[[], Values], labels: tuple[str, ...] = ()) -> None:
        """Announce a number that goes up and down. `read` runs on the event loop and must not block."""
        self._add("gauge", name, text, read, labels)

    def _add(
        self, kind: Literal["counter", "gauge"], name: str, text: str, read: Callable[[], Values], labels: tuple[str, ...]
    ) -> None:
        if any(source.name == name for source in self._sources):
            raise ValueError(f"there is a metric {name!r} already")
        source = _Source(kind, name, text, labels)
        source.read = read
        self._sources.append(source)

    async def text(self) -> bytes:
        """All of it as it is now, or becomes while it is written. What cannot be read is left out and counted."""
        parts = [generate_latest(self._registry).decode()]
        written = 0
        for source in reversed(self._sources):  # the failures stand first and are read last
            lines: list[str] = []
            try:
                for line in source.lines():
                    lines.append(line)
                    written += 1
                    if written % SAMPLES_AT_ONCE == 0:
                        await asyncio.sleep(0)
            except Exception:  # whatever it is, a blind node is worse
                self.failures[source.name] = self.failures.get(source.name, 0) + 1
            else:
                parts += lines
        return "".join(parts).encode()

    async def tell(self, _: Mapping[str, object]) -> dict[str, object]:
        """The text, for the supervisor of a node with several workers."""
        return {"text": (await self.text()).decode()}


class LoopLag:
    """Measures how late the event loop runs a timer: the time that a message may have to wait."""

    def __init__(
        self, metrics: Metrics, *, interval_s: float = LAG_INTERVAL_S, on_sample: Callable[[float], None] = lambda _: None
    ) -> None:
        """`on_sample` is told each lateness, in seconds."""
        self._observe = metrics.lag.observe
        self._on_sample = on_sample
        self._interval = interval_s
        self.worst_s = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._interval
            await asyncio.sleep(self._interval)
            lag = max(0.0, loop.time() - due)
            self.worst_s = max(self.worst_s, lag)
            self._observe(lag)
            self._on_sample(lag)


class Source(Protocol):
    """What a scrape is answered with."""

    async def text(self) -> bytes: ...


class MetricsServer:
    """Answers GET /metrics on one address; everything about a request is bounded."""

    def __init__(self, metrics: Source) -> None:
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._rendering: asyncio.Task[bytes] | None = None
        self._rendered_at = -KEEP_S
        self._writers: set[asyncio.StreamWriter] = set()
        self.refused = 0

    async def start(self, address: str) -> tuple[str, int]:
        """Listen on `host:port` (port 0: any) and return what was taken. Raises OSError and ValueError."""
        host, port = split_address(address)
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST_BYTES)
        taken: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return taken

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
        if self._rendering is not None:
            self._rendering.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= MAX_CONNECTIONS:
            self.refused += 1
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.refused += 1
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request_line: bytes) -> bytes:
        method, _, rest = request_line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(b"405 Method Not Allowed", b"GET only\n", with_body=True)
        if path != b"/metrics":
            return _response(b"404 Not Found", b"see /metrics\n", with_body=method == b"GET")
        return _response(b"200 OK", await self._text(), with_body=method == b"GET")

    async def _text(self) -> bytes:
        """The current text; concurrent and quickly repeated requests share one rendering."""
        loop = asyncio.get_running_loop()
        if self._rendering is None or (self._rendering.done() and loop.time() - self._rendered_at >= KEEP_S):
            self._rendered_at = loop.time()
            self._rendering = loop.create_task(self._metrics.text())
        return await asyncio.shield(self._rendering)


def _response(status: bytes, body: bytes, *, with_body: bool) -> bytes:
    head = (
        b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\nConnection: close\r\n\r\n"
    )
    return head + body if with_body else head
