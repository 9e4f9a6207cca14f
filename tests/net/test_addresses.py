"""Addresses that come and go under the listeners: in a network namespace of its own, and what needs none."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import structlog

from sipproxy.net.addresses import follow_addresses, is_here
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from tests.networks import run_in_own_network


def test_addresses_in_a_network_of_their_own() -> None:
    run_in_own_network(Path(__file__).with_name("addresses_cases.py"))


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", True), ("192.0.2.1", False)])
def test_is_here_knows_what_the_machine_answers_at(host: str, here: bool) -> None:
    assert is_here(host) is here


async def test_without_netlink_that_is_said_once_and_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit's RestrictAddressFamilies= that leaves AF_NETLINK out."""
    real = socket.socket

    def refused(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_NETLINK:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", refused)
    transports = Transports(Resolver(), lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None)
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait_for(follow_addresses(transports, structlog.get_logger("node")), 20)
    assert [entry["event"] for entry in logs] == ["addresses_not_watched"]
