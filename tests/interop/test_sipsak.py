"""sipsak against a real node: the OPTIONS that monitoring sends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.node import LineSpec
from tests.programs import run

if TYPE_CHECKING:
    from loadtest.network import Network


@pytest.mark.program("sipsak")
async def test_options_from_sipsak_is_answered_200(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([LineSpec("B2001", "b2001", "secret-b", "+49603255501")])
    program = shutil.which("sipsak")
    assert program is not None
    host, port = network.node.address
    status, output, errors = await run(program, "-vv", "-s", f"sip:{host}:{port}")
    assert status == 0, f"{output.decode()}\n{errors.decode()}"
    assert b"SIP/2.0 200 OK" in output
