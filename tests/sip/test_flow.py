"""Flows: what counts as one source."""

from __future__ import annotations

from sipproxy.sip.flow import source_of


def test_ipv6_sources_are_counted_by_their_64() -> None:
    assert source_of("2001:db8:1:2::1") == source_of("2001:db8:1:2:ffff::9")
    assert source_of("2001:db8:1:2::1") != source_of("2001:db8:1:3::1")
    assert source_of("192.0.2.1") != source_of("192.0.2.2")
