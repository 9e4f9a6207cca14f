"""How late event loops ran during a measurement: this program's own, and the node's as its metrics tell.

A delay that the generator itself caused must not be charged to the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from collections.abc import Iterator
from types import TracebackType

__all__ = ["OwnLateness", "no_sweeps", "node_metrics", "worst_bucket_ms"]

SAMPLE_S = 0.01
TIMEOUT_S = 5.0
WORKER = re.compile(r'(?<=\{)worker="[0-9]+",?')
BUCKET = re.compile(r'sipproxy_loop_lag_seconds_bucket\{le="([^"]+)"\}')


class OwnLateness:
    """Samples this process's event loop while the block runs; `samples_ms` are how late each 10 ms timer was."""

    def __init__(self) -> None:
        self.samples_ms: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> OwnLateness:
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)  # who is cancelled meanwhile is: only the sampling is not told

    @property
    def worst_ms(self) -> float:
        return max(self.samples_ms, default=0.0)

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_S
            await asyncio.sleep(SAMPLE_S)
            self.samples_ms.append(max(0.0, loop.time() - due) * 1000)


@contextlib.contextmanager
def no_sweeps() -> Iterator[None]:
    """The garbage collector of this process looks at nothing meanwhile.

    What it takes to look at all that a generator holds, some 50 ms with 4,000 routers, gathers the messages of as many ms into
    one burst, and who waits in a burst waits for the generator. The messages leave next to no garbage (14 objects a second).
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def node_metrics(host: str, port: int) -> dict[str, float]:
    """The node's metrics by name with labels, as written; empty when it does not answer."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            text = (await reader.read()).decode("utf-8", "replace")
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        return {}
    found: dict[str, float] = {}
    for line in text.partition("\r\n\r\n")[2].splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            with contextlib.suppress(ValueError):
                of_all = WORKER.sub("", name).replace("{}", "")  # the workers of one node are counted together
                found[of_all] = found.get(of_all, 0.0) + float(value)
    return found


def worst_bucket_ms(before: dict[str, float], after: dict[str, float]) -> float:
    """The bound (ms) under which every timer of the node's loop ran between two readings; infinite above the last bucket."""
    counts = []
    for name, value in after.items():
        match = BUCKET.fullmatch(name)
        if match is not None:
            counts.append((float(match[1]), value - before.get(name, 0.0)))
    counts.sort()
    total = counts[-1][1] if counts else 0.0
    return next((bound * 1000 for bound, count in counts if count >= total), 0.0)
