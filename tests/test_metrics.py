"""Metrics: what the parts count, as Prometheus' text, without holding the event loop up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sipproxy import metrics as metrics_module
from sipproxy.metrics import SAMPLES_AT_ONCE, LoopLag, Metrics, MetricsServer


@pytest.fixture
async def served() -> AsyncIterator[tuple[Metrics, MetricsServer, int]]:
    metrics = Metrics()
    server = MetricsServer(metrics)
    _, port = await server.start("127.0.0.1:0")
    yield metrics, server, port
    await server.close()


async def fetched(port: int, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> tuple[bytes, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body.decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples
    }


async def test_scrape_numbers_and_dicts_appear_with_their_labels(served: tuple[Metrics, MetricsServer, int]) -> None:
    metrics, _, port = served
    requests = {("INVITE", "200"): 3, ("REGISTER", "401"): 2}
    metrics.counter("sipproxy_requests", "requests", lambda: requests, ("method", "result"))
    metrics.counter("sipproxy_decisions", "decisions", lambda: {"line.channels": 4}, ("rule",))
    metrics.gauge("sipproxy_calls", "live calls", lambda: 7)
    head, text = await fetched(port)
    assert head.startswith(b"HTTP/1.1 200 OK")
    found = samples(text)
    assert found["sipproxy_requests_total", (("method", "INVITE"), ("result", "200"))] == 3
    assert found["sipproxy_requests_total", (("method", "REGISTER"), ("result", "401"))] == 2
    assert found["sipproxy_decisions_total", (("rule", "line.channels"),)] == 4
    assert found["sipproxy_calls", ()] == 7
    assert found["process_cpu_seconds_total", ()] > 0


async def test_scrape_writes_labels_in_the_order_of_their_names(served: tuple[Metrics, MetricsServer, int]) -> None:
    """As it always did: who compares two scrapes as text, or looks for a line of one, goes on finding it."""
    metrics, _, port = served
    metrics.counter("sipproxy_challenges", "x", lambda: {("carrier", "answered"): 3}, ("trunk", "outcome"))
    _, text = await fetched(port)
    assert 'sipproxy_challenges_total{outcome="answered",trunk="carrier"} 3.0\n' in text


async def test_scrape_label_with_quotes_and_newlines_stays_one_sample(served: tuple[Metrics, MetricsServer, int]) -> None:
    metrics, _, port = served
    metrics.counter("sipproxy_x", "x", lambda: {'a"b\n\\c': 1}, ("name",))
    _, text = await fetched(port)
    assert samples(text)["sipproxy_x_total", (("name", 'a"b\n\\c'),)] == 1


async def test_scrape_value_that_cannot_be_read_is_counted_and_the_others_shown(
    served: tuple[Metrics, MetricsServer, int],
) -> None:
    metrics, _, port = served
    metrics.gauge("sipproxy_broken", "raises", lambda: {}["x"])
    metrics.gauge("sipproxy_unlabelled", "keys do not fit the labels", lambda: {("a", "b"): 1}, ("one",))
    metrics.gauge("sipproxy_calls", "live calls", lambda: 7)
    found = samples((await fetched(port))[1])
    assert found["sipproxy_calls", ()] == 7
    assert found["sipproxy_metric_failures_total", (("metric", "sipproxy_broken"),)] == 1
    assert found["sipproxy_metric_failures_total", (("metric", "sipproxy_unlabelled"),)] == 1


async def test_scrape_after_the_kept_time_reads_again(
    served: tuple[Metrics, MetricsServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _, port = served
    reads = 0

    def read() -> float:
        nonlocal reads
        reads += 1
        return reads

    metrics.gauge("sipproxy_reads", "reads", read)
    texts = [text for _, text in await asyncio.gather(*(fetched(port) for _ in range(5)))]
    assert reads == 1
    assert all(samples(text)["sipproxy_reads", ()] == 1 for text in texts)
    monkeypatch.setattr(metrics_module, "KEEP_S", 0.0)
    _, text = await fetched(port)
    assert samples(text)["sipproxy_reads", ()] == 2


async def test_scrape_many_series_lets_the_loop_do_other_things_in_between(served: tuple[Metrics, MetricsServer, int]) -> None:
    metrics, _, port = served
    series, others = 5000, 100
    metrics.counter("sipproxy_x", "x", lambda: {str(number): number for number in range(series)}, ("n",))
    for number in range(others):
        metrics.gauge(f"sipproxy_y{number}", "y", lambda: 1)
    scrape = asyncio.create_task(fetched(port))
    turns = 0
    while not scrape.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= (series + others) // SAMPLES_AT_ONCE
    text = (await scrape)[1]
    assert text.count("# TYPE sipproxy_x_total counter") == 1
    found = samples(text)
    assert [found["sipproxy_x_total", (("n", str(number)),)] for number in range(series)] == list(range(series))
    assert all(found[f"sipproxy_y{number}", ()] == 1 for number in range(others))


async def test_scrape_more_series_than_the_bound_are_cut(
    served: tuple[Metrics, MetricsServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _, port = served
    monkeypatch.setattr(metrics_module, "MAX_SERIES", 5)
    metrics.counter("sipproxy_x", "x", lambda: {str(number): 1 for number in range(9)}, ("n",))
    _, text = await fetched(port)
    assert len([name for name, _ in samples(text) if name == "sipproxy_x_total"]) == 5


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"nonsense", b"405"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200"),
    ],
)
async def test_serve_other_requests_get_their_status(
    served: tuple[Metrics, MetricsServer, int], request_line: bytes, status: bytes
) -> None:
    head, _ = await fetched(served[2], request_line + b"\r\n\r\n")
    assert head.split(b" ")[1] == status


async def test_serve_head_has_no_body(served: tuple[Metrics, MetricsServer, int]) -> None:
    head, body = await fetched(served[2], b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == ""


async def test_serve_request_above_the_bound_is_dropped_and_counted(served: tuple[Metrics, MetricsServer, int]) -> None:
    _, server, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000)
    with pytest.raises(ConnectionError):
        raise ConnectionResetError if not await reader.read() else AssertionError
    writer.close()
    assert server.refused == 1


async def test_serve_silent_client_is_dropped_at_the_bound(
    served: tuple[Metrics, MetricsServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "REQUEST_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", served[2])
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    assert served[1].refused == 1


def test_metrics_same_name_twice_is_refused() -> None:
    metrics = Metrics()
    metrics.gauge("sipproxy_x", "x", lambda: 1)
    with pytest.raises(ValueError, match="sipproxy_x"):
        metrics.counter("sipproxy_x", "x", lambda: 1)


async def test_loop_lag_blocked_loop_is_measured() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics, interval_s=0.01)
    task = asyncio.create_task(lag.run())
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)  # its first timer is set
    loop.call_soon(time.sleep, 0.15)
    async with asyncio.timeout(40):
        while lag.worst_s <= 0.1:  # noqa: ASYNC110  the measure has no event to wait for
            await asyncio.sleep(0.01)
    task.cancel()
    assert 0.1 < lag.worst_s < 10
    assert b"sipproxy_loop_lag_seconds_count" in await metrics.text()
