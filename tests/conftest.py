"""Fixtures of the tests that run a real node: a network around it, and its log and wire trace when a test fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_asyncio

from sipproxy import compiled

if TYPE_CHECKING:
    from loadtest.network import Network

# How long one example takes, or its data, says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
# The whole suite, which others wait for, tries the same data each time; what is run by itself, new ones.
hypothesis.settings.register_profile("same", hypothesis.settings.get_profile("untimed"), derandomize=True)
hypothesis.settings.load_profile("untimed")

FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what compiled modules cannot be tested by, where they are there."""
    if compiled.kind() == "plain":
        return
    for item in items:
        if item.get_closest_marker("plain_alone") is not None:
            item.add_marker(pytest.mark.skip(reason="replaces what compiled modules do not look up or take"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest_asyncio.fixture
async def start_network(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """`await start_network(lines, **options)` starts a node with everything around it; ended after the test."""
    from loadtest.network import Network

    networks: list[Network] = []
    async with AsyncExitStack() as stack:

        async def start(*args: Any, **options: Any) -> Network:
            network = await stack.enter_async_context(Network(*args, **options))
            networks.append(network)
            return network

        yield start
        if request.node.stash.get(FAILED, False):
            for network in networks:
                print(network.ledger.tail())
                print(network.node.log())
        for network in networks:
            if network.node.running:
                await network.stop_node()
