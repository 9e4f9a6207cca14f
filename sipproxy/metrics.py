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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
        self.kind = kind
        self.name = name
        self.text = text
        self.labels = labels
        self.read: Callable[[], Values] = dict

    def family(self) -> Metric:
        """The values as they are now. Raises what reading does, and ValueError where they do not fit the labels."""
        values = self.read()
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name, self.text, labels=self.labels)
        if not isinstance(values, Mapping):
            family.add_metric((), float(values))
            return family
        for key, value in islice(values.items(), MAX_SERIES):
            labels = (key,) if isinstance(key, str) else tuple(key)
            if len(labels) != len(self.labels):
                raise ValueError(f"{self.name} is read without its labels {self.labels}")
            family.add_metric(labels, value)
        return family


class _Part(Collector):
    """Some samples of a family, to be written as if there were no others."""

    def __init__(self, family: Metric, start: int) -> None:
        self._part = Metric(family.name, family.documentation, family.type)
        self._part.samples = family.samples[start : start + SAMPLES_AT_ONCE]

    def collect(self) -> Iterator[Metric]:
        yield self._part


class Metrics(Collector):
    """The node's metrics: what the parts count, read at scrape time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sources: list[_Source] = []
        self.failures: dict[str, int] = {}
        self.lag = Histogram(
            "sipproxy_loop_lag_seconds", "how late the event loop ran a timer", buckets=LAG_BUCKETS, registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
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

    def collect(self) -> Iterator[Metric]:
        """The families, each read when it is asked for. One that cannot be read is left out and counted."""
        for source in reversed(self._sources):  # the failures stand first and are read last
            try:
                family = source.family()
            except Exception:  # whatever it is, a blind node is worse
                self.failures[source.name] = self.failures.get(source.name, 0) + 1
            else:
                yield family

    async def text(self) -> bytes:
        """All of it as it is now, or becomes while it is written."""
        parts: list[bytes] = []
        written = 0
        for family in self.registry.collect():
            for start in range(0, max(1, len(family.samples)), SAMPLES_AT_ONCE):
                text = generate_latest(_Part(family, start))
                parts.append(text if start == 0 else text.split(b"\n", 2)[2])  # without its HELP and TYPE
                written += min(SAMPLES_AT_ONCE, len(family.samples) - start)
                if written >= SAMPLES_AT_ONCE:
                    written = 0
                    await asyncio.sleep(0)
        return b"".join(parts)

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
