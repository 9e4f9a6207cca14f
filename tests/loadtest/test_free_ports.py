"""Free ports: what is told to one party is told to no other one that starts beside it, in whichever process."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from loadtest import net

if TYPE_CHECKING:
    import pytest

HOST = "127.0.0.9"
FIRST = 6000  # below the ports that other tests ask for meanwhile
OTHER = f"""
import sys
from loadtest import net
net.FIRST, net.secrets.randbelow = {FIRST}, lambda below: 600
print(net.free_udp_port("{HOST}"), flush=True)
sys.stdin.read()
"""


def draw(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    draws = iter(numbers)
    monkeypatch.setattr(net, "FIRST", FIRST)
    monkeypatch.setattr(net.secrets, "randbelow", lambda below: next(draws))


def test_port_that_was_told_is_not_told_again_before_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 500, 500, 499, 498, 503, 503, 504)
    one = net.free_udp_port(HOST)
    assert one == FIRST + 1000
    assert net.free_udp_port(HOST, count=4) == one - 4
    assert net.free_tcp_port(HOST) == one + 6
    assert net.free_tcp_port(HOST) == one + 8


def test_port_that_was_told_in_another_process_is_not_told_while_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        told = int(other.stdout.readline())
        draw(monkeypatch, 600, 601)
        assert (told, net.free_udp_port(HOST)) == (FIRST + 1200, FIRST + 1202)
    draw(monkeypatch, 600)
    assert net.free_udp_port(HOST) == told


def test_port_that_somebody_has_is_not_told_and_stays_free_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 700, 701, 700)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, FIRST + 1400))
        assert net.free_udp_port(HOST) == FIRST + 1402
    assert net.free_udp_port(HOST) == FIRST + 1400


def test_ports_that_were_told_long_ago_are_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, *range(800, 800 + net.CLAIMS + 1), 800)
    for _ in range(net.CLAIMS + 1):
        net.free_udp_port(HOST)
    assert net.free_udp_port(HOST) == FIRST + 1600
