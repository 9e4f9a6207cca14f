"""Programs of others that these tests need: a missing one skips its tests with the name of its package."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {"dnsmasq": "dnsmasq-base", "sipp": "sip-tester", "kamailio": "kamailio", "sipsak": "sipsak"}
PATHS = ":/usr/sbin:/usr/local/sbin"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "program(name): needs a program that is no Python package")


def pytest_runtest_setup(item: pytest.Item) -> None:
    import os

    for marker in item.iter_markers("program"):
        name = marker.args[0]
        if shutil.which(name, path=os.environ.get("PATH", "") + PATHS) is None:
            pytest.skip(f"{name} is not installed: apt-get install {PACKAGES[name]}")
