"""Free ports: what is told to one party is not told to another one that starts beside it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from loadtest import net

if TYPE_CHECKING:
    import pytest


def test_port_that_was_told_is_not_told_again_before_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([500, 500, 499, 498, 503, 503, 504])
    monkeypatch.setattr(net.secrets, "randbelow", lambda below: next(draws))
    one = net.free_udp_port("127.0.0.9")
    assert one == net.FIRST + 1000
    assert net.free_udp_port("127.0.0.9", count=4) == one - 4
    assert net.free_tcp_port("127.0.0.9") == one + 6
    assert net.free_tcp_port("127.0.0.9") == one + 8


def test_port_that_somebody_has_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([700, 701])
    monkeypatch.setattr(net.secrets, "randbelow", lambda below: next(draws))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.9", net.FIRST + 1400))
        assert net.free_udp_port("127.0.0.9") == net.FIRST + 1402
